"""Open Images: boxes of objects in a CSV, in shares of the picture's width and height.

train-annotations-bbox.csv       ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,
                                 IsOccluded,IsTruncated,IsGroupOf,...: one box a row, those of
                                 a picture behind one another
class-descriptions-boxable.csv   /m/011k07,Tortoise; with or without oidv7- in front
train/000002b66c9c498e.jpg       pictures
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import groupby
from pathlib import Path

from cm3leon_jax.data.annotations import find_image, home
from cm3leon_jax.data.pictures import upright_size
from cm3leon_jax.data.records import Box, Found, Place, Record, start_at
from cm3leon_jax.data.tables import list_lines

CLASSES = "*class-descriptions-boxable.csv"
COLUMNS = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax", "IsGroupOf")
Row = tuple[Place, list[str]]


def scan_boxes(files: Sequence[Path], start: Place | None = None) -> Iterator[Found]:
    """The pictures with the boxes of their single objects; those that show groups only are passed
    over. The text is the names of what is marked."""
    for file, place in start_at(files, start):
        columns, behind = _read_header(file)
        names, root, which = _read_classes(file), home(file), columns[0]
        lines = list_lines(file, place or behind)
        rows = ((there, line.decode(errors="replace").split(",")) for line, there in lines)
        for id, found in groupby(rows, partial(_id_of, which)):
            there = list(found)
            single = [row for _, row in there if _is_single(row, columns)]
            if single:
                make = partial(_record, root, id, single, columns, names)
                yield Found(f"{file.name}:{there[0][0].line}", make, there[0][0])


def _id_of(which: int, row: Row) -> str:
    return row[1][which] if which < len(row[1]) else ""


def _is_single(row: list[str], columns: Sequence[int]) -> bool:
    return len(row) <= columns[-1] or row[columns[-1]] != "1"  # a short row is bad, not a group


def _record(
    root: Path, id: str, rows: list[list[str]], columns: Sequence[int], names: Mapping[str, str]
) -> Record:
    image = find_image(root, f"{id}.jpg")
    width, height = upright_size(image)
    boxes: list[Box] = []
    for row in rows:
        if len(row) <= max(columns):
            raise ValueError(f"a row has {len(row)} cells: {','.join(row)[:80]}")
        _, label, *edges, _ = (row[column] for column in columns)
        if label not in names:
            raise ValueError(f"LabelName={label} is not in {CLASSES}")
        x0, x1, y0, y1 = (min(max(float(edge), 0.0), 1.0) for edge in edges)
        if not (x0 < x1 and y0 < y1):
            raise ValueError(f"box XMin,XMax,YMin,YMax={','.join(edges)} has no area in [0, 1]")
        boxes.append((names[label], (x0 * width, y0 * height, x1 * width, y1 * height)))
    labels = ", ".join(dict.fromkeys(label for label, _ in boxes))
    return Record(id, (labels, image), tuple(boxes), group=f"openimages/{id}")


def _read_header(file: Path) -> tuple[list[int], Place]:
    """Where the COLUMNS are, and the place of the row behind the header."""
    with file.open("rb") as lines:
        line = lines.readline()
    header = line.decode("utf-8-sig", errors="replace").strip().split(",")
    if missing := [name for name in COLUMNS if name not in header]:
        raise ValueError(f"{file}:1: no column {missing[0]}: give *-annotations-bbox.csv")
    return [header.index(name) for name in COLUMNS], Place(str(file), len(line), 2)


@lru_cache(maxsize=4)
def _read_classes(file: Path) -> dict[str, str]:
    """Names in words, in small letters, by label."""
    found = [*sorted(file.parent.glob(CLASSES)), *sorted(home(file).glob(CLASSES))]
    if not found:
        raise ValueError(f"{file.parent} has no {CLASSES}: it holds the names of the labels")
    with found[0].open(encoding="utf-8-sig", newline="") as stream:
        return {row[0]: row[1].lower() for row in csv.reader(stream) if len(row) == 2}
