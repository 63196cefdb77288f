"""Image-text folders: what a user writes as a record, and pictures with captions beside them.

An entry, from whatever table it is read, has `segments` in any order and number, or is short:

    {"segments": [{"text": "a cat"}, {"image": "cats/1.png"}]}
    {"image": "cats/1.png", "text": "a cat"}                       the text comes first
    {"image": "cats/1.png", "map": "cats/1.depth.png", "text": "a cat"}     then the map, the image

("caption" is another name for "text".) Optional in all forms: "id", "boxes" ([["cat", [x0, y0, x1,
y1]], ...] in pixels), "question" with "answer" and, where people gave several, "answers",
"instruction", "license", "source_url". An image
path is relative to the table's folder and may not leave it. A record without "id" is named after
its content, so it stays on its side of the held-out split when lines are moved. Entries that show
the same first picture are one group: they stay together.
"""

import difflib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from cm3leon_jax.data.records import Found, Place, Record, Segment, check_text

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
CONTENT = ("segments", "image", "map", "text", "caption")
DETAILS = ("boxes", "question", "answer", "answers", "instruction", "license", "source_url")
FIELDS = ("id", *CONTENT, *DETAILS)

Find = Callable[[str], Segment]
"""The picture of that name; raises ValueError when there is none."""


def to_record(entry: Any, find: Find, origin: str) -> Record:
    """The record that an entry says, its pictures found with `find`; raises ValueError."""
    if not isinstance(entry, Mapping):
        raise ValueError(f"a record is a JSON object, not {type(entry).__name__}")
    check_known("field", entry, FIELDS)
    boxes = entry.get("boxes", [])
    if not isinstance(boxes, list):
        raise ValueError(f"boxes={boxes!r} is not a list: give [[label, [x0, y0, x1, y1]], ...]")
    answers = entry.get("answers", [])
    if not isinstance(answers, list):
        raise ValueError(f'answers={answers!r} is not a list: give ["...", ...]')
    parts = _list_parts(entry)
    segments = tuple(_to_segment(part, find) for part in parts)
    shown = [part["image"] for part in parts if "image" in part]
    pictures = [PurePosixPath(name).as_posix() for name in (shown[1:] if "map" in entry else shown)]
    return Record(
        id=entry["id"] if "id" in entry else _name_content(entry),
        segments=segments,
        boxes=tuple((b[0], tuple(b[1])) if _is_pair(b) else b for b in boxes),
        question=entry.get("question"),
        answer=entry.get("answer"),
        answers=tuple(answers),
        instruction=entry.get("instruction"),
        license=entry.get("license", ""),
        source_url=entry.get("source_url", ""),
        origin=origin,
        group=pictures[0] if pictures else "",
    )


def check_known(kind: str, names: Iterable[str], known: Sequence[str]) -> None:
    """Raises ValueError for the first of `names` that is unknown, with the nearest known one."""
    if unknown := sorted(set(names) - set(known)):
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        raise ValueError(f"unknown {kind} {unknown[0]!r}: {hint}")


def find_picture(folder: Path, name: str) -> Path:
    """The file of that name, which lies inside the (resolved) folder and is not empty."""
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


def scan_pairs(roots: Sequence[Path], start: Place | None = None) -> Iterator[Found]:
    """Every picture `x.png` beside its caption `x.txt`, in subfolders too, hidden ones left out.

    The id is the path without its suffix. A place is a folder and the number of a pair in it.
    """
    for root in roots:
        top = root.resolve()
        inside = Path(start.path).relative_to(top).parts if start else ()
        for folder, names in _walk(top, inside):
            for number, (file, caption) in enumerate(_list_pairs(folder, names)):
                if start is None or number >= start.offset:
                    origin = file.relative_to(top).as_posix()
                    make = partial(_read_pair, top, origin, file, caption)
                    yield Found(origin, make, Place(str(folder), number))
            start = None


def _walk(folder: Path, inside: tuple[str, ...] = ()) -> Iterator[tuple[Path, list[str]]]:
    """A folder and those below it with the names of their files; from the folder `inside` on."""
    _, folders, names = next(os.walk(folder), ("", [], []))
    if not inside:
        yield folder, names
    for name in sorted(folders):
        path, is_on_the_way = folder / name, inside[:1] == (name,)
        if not (name.startswith(".") or path.is_symlink() or (name,) < inside[:1]):
            yield from _walk(path, inside[1:] if is_on_the_way else ())


def _list_pairs(folder: Path, names: list[str]) -> list[tuple[Path, Path | None]]:
    """The pictures of a folder, each with its caption or None, then captions without a picture."""
    files = [folder / name for name in sorted(names) if not name.startswith(".")]
    pictures = [file for file in files if file.suffix.lower() in PICTURE_SUFFIXES]
    captions = {file.stem: file for file in files if file.suffix.lower() == ".txt"}
    alone = sorted(captions.keys() - {picture.stem for picture in pictures})
    return [
        *((picture, captions.get(picture.stem)) for picture in pictures),
        *((captions[stem], None) for stem in alone),
    ]


def _read_pair(folder: Path, name: str, picture: Path, caption: Path | None) -> Record:
    if picture.suffix.lower() == ".txt":
        raise ValueError(f"no picture beside it ({' '.join(sorted(PICTURE_SUFFIXES))})")
    if caption is None:
        raise ValueError(f"no caption beside it: write {picture.stem}.txt")
    try:
        text = caption.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"{error.reason} at byte {error.start}"
        raise ValueError(f"{caption.name} is not UTF-8: {reason}") from None
    except OSError as error:
        raise ValueError(f"{caption.name} cannot be read: {error.strerror}") from None
    entry = {"id": name.removesuffix(picture.suffix), "image": name, "text": text}
    return to_record(entry, partial(find_picture, folder), name)


def _list_parts(entry: Mapping[str, Any]) -> list[Any]:
    """The segments as [{"text": ...} | {"image": ...}, ...]; a short form is spelt out."""
    short = [name for name in ("text", "caption", "map", "image") if name in entry]
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
    if "map" in short and "image" not in short:
        raise ValueError("a map without its image: give both")
    if not {"text", "caption"} & {*short} and not {"question", "instruction"} & entry.keys():
        raise ValueError("no caption: give text")
    kinds = {"text": "text", "caption": "text", "map": "image", "image": "image"}
    return [{kinds[name]: entry[name]} for name in short]


def _to_segment(part: Any, find: Find) -> Segment:
    match part:
        case {"text": text, **rest} if not rest:
            check_text("text", text)
            return text.strip()
        case {"image": str(name), **rest} if not rest:
            return find(name)
    raise ValueError(f'segment {part!r}: give {{"text": "..."}} or {{"image": "path"}}')


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[1], list)


def _name_content(entry: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()[:16]
