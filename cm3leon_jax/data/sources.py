"""Where a user's own data comes in: one record schema, read from image-text folders.

Three promises: reading streams; a bad record is skipped and listed as `file:line: reason`; too many
bad records stop the run with one message.
"""

import difflib
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Segment = str | Path | bytes | np.ndarray
"""Text (str), or an image: a file (Path), a file's contents (bytes) or pixels (uint8 [Y, X, 3])."""

Box = tuple[str, tuple[float, float, float, float]]
"""A label and (x0, y0, x1, y1) in pixels of the upright image: x to the right, y down."""

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
CONTENT = ("segments", "image", "text", "caption")
DETAILS = ("boxes", "question", "answer", "instruction", "license", "source_url")
FIELDS = ("id", *CONTENT, *DETAILS)


@dataclass(frozen=True, eq=False)  # arrays have no single truth value, so neither would ==
class Record:
    """One source document, before any tokenizer has seen it.

    `segments` are in reading order. An edit is (image before, image after) with the `instruction`;
    a question about an image carries `question` and `answer`; `boxes` belong to the first image.
    `origin` says where the record was read ("captions.jsonl:17") and serves messages only.
    """

    id: str
    segments: tuple[Segment, ...]
    boxes: tuple[Box, ...] = ()
    question: str | None = None
    answer: str | None = None
    instruction: str | None = None
    license: str = ""
    source_url: str = ""
    origin: str = ""
    group: str = ""  # records of one group stay on one side of the held-out split; default: the id

    def __post_init__(self) -> None:
        _check_text("id", self.id)
        if not self.group:
            object.__setattr__(self, "group", self.id)
        if not isinstance(self.segments, tuple) or not self.segments:
            raise ValueError(f"segments={self.segments!r}: give a tuple with one segment or more")
        for i, segment in enumerate(self.segments):
            _check_segment(f"segments[{i}]", segment)
        for i, box in enumerate(self.boxes):
            _check_box(f"boxes[{i}]", box)
        for name in ("question", "answer", "instruction"):
            if getattr(self, name) is not None:
                _check_text(name, getattr(self, name))
        if (self.question is None) != (self.answer is None):
            raise ValueError("question and answer come together: give both or neither")
        for name in ("license", "source_url", "origin"):
            if getattr(self, name) != "":
                _check_text(name, getattr(self, name))


def is_held_out(id: str, fraction: float = 0.05) -> bool:
    """Whether a record is kept from training. Depends on the id alone: equal on every machine."""
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction={fraction} is outside [0, 1]")
    return int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "big") < fraction * 2**64


@dataclass
class Skipped:
    """The records that were left out: `where: reason`, counted against all records seen."""

    seen: int = 0
    reasons: list[str] = field(default_factory=list)

    def add(self, where: str, reason: str) -> None:
        """Lists one bad record. The reader has counted it in `seen` already."""
        self.reasons.append(f"{where}: {reason}")

    def check(self, max_bad_fraction: float = 0.01) -> None:
        """Raises ValueError, naming the first few, when more than this fraction was skipped."""
        bad = len(self.reasons)
        if bad <= max_bad_fraction * self.seen:
            return
        first = "; ".join(self.reasons[:3]) + ("; ..." if bad > 3 else "")
        raise ValueError(
            f"{bad} of {self.seen} records are bad ({bad / max(self.seen, 1):.1%}, limit "
            f"{max_bad_fraction:.1%}): {first}. Mend them or raise --max_bad_fraction"
        )

    def check_early(self, max_bad_fraction: float = 0.01) -> None:
        """Like `check`, but only when no plausible rest of the data could mend the fraction.

        From 100 records on, and five standard deviations (Poisson) above the limit.
        """
        expected = max_bad_fraction * self.seen
        if self.seen >= 100 and len(self.reasons) > expected + 5 * math.sqrt(expected):
            self.check(max_bad_fraction)

    def write(self, path: Path) -> None:
        """Writes the list, one line a record; the file appears whole or not at all."""
        partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        partial.write_text("".join(f"{reason}\n" for reason in self.reasons), encoding="utf-8")
        partial.replace(path)


def read_folder(
    root: Path | str, skipped: Skipped, max_bad_fraction: float = 0.01
) -> Iterator[Record]:
    """Streams the records of an image-text folder; bad ones go to `skipped`.

    With `*.jsonl` files directly in `root` (or `root` itself such a file), one record a line:

        {"segments": [{"text": "a cat"}, {"image": "cats/1.png"}]}     any order, any number
        {"image": "cats/1.png", "text": "a cat"}                       short: text, then image

    ("caption" is another name for "text".) Optional in both forms: "id", "boxes"
    ([["cat", [x0, y0, x1, y1]], ...] in pixels), "question" with "answer", "instruction",
    "license", "source_url". An image path is relative to the folder and may not leave it. A record
    without "id" is named after its content, so it stays on its side of the held-out split when
    lines are moved. Lines that show the same first picture are one group: they stay together.

    Without JSONL files, every picture `x.png` beside its caption `x.txt`, in subfolders too; the id
    is the path without its suffix. Hidden files are passed over.

    Raises FileNotFoundError when there is no such folder, and ValueError when it holds no record or
    more than `max_bad_fraction` of its records are bad.
    """
    root = Path(root)
    if not root.exists():
        raise FileNotFoundError(f"no such folder or JSONL file: {root}; give one with --data")
    if root.is_file() and root.suffix != ".jsonl":
        raise ValueError(f"{root}: give a folder, or a .jsonl file")
    tables = [root] if root.is_file() else sorted(root.glob("[!.]*.jsonl"))
    folder = (root.parent if root.is_file() else root).resolve()
    entries = _read_tables(tables, folder) if tables else _read_pairs(folder)
    ids: set[str] = set()
    for origin, entry in entries:
        skipped.seen += 1
        try:
            record = _to_record(entry, folder, origin)
            if record.id in ids:
                raise ValueError(f"duplicate id {record.id!r}")
        except (ValueError, OSError) as error:
            skipped.add(origin, str(error))
            skipped.check_early(max_bad_fraction)
        else:
            ids.add(record.id)
            yield record
    if not skipped.seen:
        raise ValueError(
            f"{root} holds no records: give *.jsonl files, or pictures x.png with x.txt"
        )
    skipped.check(max_bad_fraction)


# An entry is a parsed JSON value, or the error that stands in its place.
Entry = tuple[str, Any]


def _read_tables(tables: list[Path], folder: Path) -> Iterator[Entry]:
    for table in tables:
        with table.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not (line := line.removeprefix(b"\xef\xbb\xbf").strip()):
                    continue
                entry: Any
                try:
                    entry = json.loads(line.decode())
                except UnicodeDecodeError as error:
                    entry = ValueError(f"not UTF-8: {error.reason} at byte {error.start}")
                except RecursionError:
                    entry = ValueError("broken JSON: nested too deeply")
                except ValueError as error:
                    entry = ValueError(f"broken JSON: {error}")
                yield f"{table.name}:{number}", entry


def _read_pairs(folder: Path) -> Iterator[Entry]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files = [Path(place, name) for name in sorted(names) if not name.startswith(".")]
        pictures = [file for file in files if file.suffix.lower() in PICTURE_SUFFIXES]
        captions = {file.stem: file for file in files if file.suffix.lower() == ".txt"}
        for picture in pictures:
            name = picture.relative_to(folder).as_posix()
            caption = captions.get(picture.stem)
            yield name, _read_pair(name, picture, caption)
        for stem in sorted(captions.keys() - {picture.stem for picture in pictures}):
            origin = captions[stem].relative_to(folder).as_posix()
            yield origin, ValueError(f"no picture beside it ({' '.join(sorted(PICTURE_SUFFIXES))})")


def _read_pair(name: str, picture: Path, caption: Path | None) -> Any:
    if caption is None:
        return ValueError(f"no caption beside it: write {picture.stem}.txt")
    try:
        text = caption.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        return ValueError(f"{caption.name} is not UTF-8: {error.reason} at byte {error.start}")
    except OSError as error:
        return ValueError(f"{caption.name} cannot be read: {error.strerror}")
    return {"id": name.removesuffix(picture.suffix), "image": name, "text": text}


def _to_record(entry: Any, folder: Path, origin: str) -> Record:
    if isinstance(entry, ValueError):
        raise entry
    if not isinstance(entry, Mapping):
        raise ValueError(f"a record is a JSON object, not {type(entry).__name__}")
    if unknown := sorted(entry.keys() - set(FIELDS)):
        near = difflib.get_close_matches(unknown[0], FIELDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(FIELDS)}"
        raise ValueError(f"unknown field {unknown[0]!r}: {hint}")
    boxes = entry.get("boxes", [])
    if not isinstance(boxes, list):
        raise ValueError(f"boxes={boxes!r} is not a list: give [[label, [x0, y0, x1, y1]], ...]")
    segments = tuple(_to_segment(part, folder) for part in _list_parts(entry))
    pictures = [part.relative_to(folder).as_posix() for part in segments if isinstance(part, Path)]
    return Record(
        id=entry["id"] if "id" in entry else _name_content(entry),
        segments=segments,
        boxes=tuple((b[0], tuple(b[1])) if _is_pair(b) else b for b in boxes),
        question=entry.get("question"),
        answer=entry.get("answer"),
        instruction=entry.get("instruction"),
        license=entry.get("license", ""),
        source_url=entry.get("source_url", ""),
        origin=origin,
        group=pictures[0] if pictures else "",
    )


def _list_parts(entry: Mapping[str, Any]) -> list[Any]:
    """The segments as [{"text": ...} | {"image": ...}, ...]; a short form is spelt out."""
    short = [name for name in ("text", "caption", "image") if name in entry]
    if "segments" in entry:
        if short:
            raise ValueError(f"segments and {short[0]} exclude one another: give one of them")
        if not isinstance(entry["segments"], list) or not entry["segments"]:
            raise ValueError(
                'segments is empty or not a list: give [{"text": ...}, {"image": ...}]'
            )
        return entry["segments"]
    if short[:2] == ["text", "caption"]:
        raise ValueError("text and caption are one field: give one of them")
    if not short:
        raise ValueError("no content: give segments, or image and text")
    if short == ["image"] and not {"question", "instruction"} & entry.keys():
        raise ValueError("no caption: give text")
    return [{"image" if name == "image" else "text": entry[name]} for name in short]


def _to_segment(part: Any, folder: Path) -> Segment:
    match part:
        case {"text": text, **rest} if not rest:
            _check_text("text", text)
            return text.strip()
        case {"image": str(name), **rest} if not rest:
            return _find_picture(name, folder)
    raise ValueError(f'segment {part!r}: give {{"text": "..."}} or {{"image": "path"}}')


def _find_picture(name: str, folder: Path) -> Path:
    """The file of that name, which lies inside the folder and is not empty."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"image path {name!r} leaves the folder: give a path relative to it")
    try:
        found = (folder / path).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):  # missing, a NUL in the name, a loop of links
        raise ValueError(f"image {name!r} is missing") from None
    if not found.is_relative_to(folder):
        raise ValueError(f"image {name!r} links outside the folder: copy it in")
    if not found.is_file() or not os.access(found, os.R_OK):
        raise ValueError(f"image {name!r} is not a readable file")
    if not found.stat().st_size:
        raise ValueError(f"image {name!r} is empty (zero bytes)")
    return folder / path


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[1], list)


def _name_content(entry: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()[:16]


def _check_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{name}={value!r} is not text: give a string")
    if not value.strip():
        raise ValueError(f"{name} is empty: give some text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name}={value!r} holds half a surrogate pair: give valid text") from None


def _check_segment(name: str, value: Any) -> None:
    if isinstance(value, np.ndarray):
        if value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3 or not value.size:
            raise ValueError(
                f"{name} is {value.dtype} {list(value.shape)}: an image array is uint8 [Y, X, 3]"
            )
    elif isinstance(value, str):
        _check_text(name, value)
    elif not isinstance(value, Path | bytes):
        raise ValueError(f"{name} is a {type(value).__name__}: give str, Path, bytes or an array")


def _check_box(name: str, value: Any) -> None:
    rule = "give (label, (x0, y0, x1, y1)) in pixels with 0 <= x0 < x1 and 0 <= y0 < y1"
    match value:
        case (str(label), (x0, y0, x1, y1)) if all(_is_finite(v) for v in (x0, y0, x1, y1)):
            if label.strip() and 0 <= x0 < x1 and 0 <= y0 < y1:
                return
    raise ValueError(f"{name}={value!r}: {rule}")


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and bool(-math.inf < value < math.inf)
