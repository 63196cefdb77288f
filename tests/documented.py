"""What the documentation tells people to run: commands and Python, page by page."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OURS = ("cm3leon", "make")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language; those of commands have none."""
    return [text for name, text in FENCED.findall(page.read_text()) if name == language]


def commands(page: Path) -> Iterator[str]:
    """Each command of ours as it is written, comments and line ends removed: first those of the
    blocks, then those with arguments that stand in the text."""
    for block in blocks(page, ""):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True) if line.startswith(OURS) else []
            if words:
                yield shlex.join(words)
    for inline in re.findall(r"`([^`\n]+)`", FENCED.sub("", page.read_text())):
        if inline.startswith(OURS) and len(inline.split()) > 2:
            yield inline
