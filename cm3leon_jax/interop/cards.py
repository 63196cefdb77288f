"""What a converted folder says of its source: licence and checksums, in card.md and on load."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

OPEN = ("apache-2.0", "mit", "bsd-3-clause", "bsd-2-clause", "cc0-1.0", "cc-by-4.0", "unlicense")
TITLES = {"mit license": "mit", "apache license": "apache-2.0"}  # first lines of their texts
NOTICE = "notice.txt"  # one line that loading prints


@dataclass(frozen=True)
class Licence:
    """name: as the source has it; "" where it says none."""

    name: str

    @property
    def notice(self) -> str:
        """The line that loading prints; "" for licences that allow every use."""
        if self.name.lower() in OPEN:
            return ""
        said = self.name or "not stated by their source"
        return f"weights under licence {said!r}: research only, unless their licence says otherwise"


def read_licence(folder: Path) -> Licence:
    """From the front matter of a folder's README.md, else the first line of a LICENSE file.

    What lies beside a single file may be about something else.
    """
    if (folder / "README.md").exists():
        head = re.match(
            r"---\n(.*?)\n---", (folder / "README.md").read_text(errors="replace"), re.S
        )
        found = dict(re.findall(r"^(license\w*):\s*(\S.*?)\s*$", head[1] if head else "", re.M))
        if name := found.get("license_name") or found.get("license"):
            return Licence(name.strip("-'\" "))
    for path in sorted(folder.glob("LICENSE*")):
        lines = path.read_text(errors="replace").split("\n")
        if name := next((line.strip() for line in lines if line.strip()), ""):
            return Licence(TITLES.get(name.lower(), name))
    return Licence("")


def write_card(
    target: Path, what: str, source: Path, digests: Mapping[str, str], licence: Licence
) -> None:
    """card.md, and the notice where there is one."""
    files = "\n".join(f"| {name} | `{digest}` |" for name, digest in sorted(digests.items()))
    (target / "card.md").write_text(f"""# {what}

Converted from `{source.resolve().name}` by `cm3leon convert`; licence of the source:
{licence.name or "not stated"}. {licence.notice}

Intended use is what that licence allows. Data, bias and limits are those of the source: its own
card tells them, and they were not measured here. Nothing filters what it draws or writes.

| file of the source | sha256 |
|---|---|
{files}
""")
    if licence.notice:
        (target / NOTICE).write_text(f"{licence.notice}\n")
