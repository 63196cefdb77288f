"""What a suite is measured on: pictures with captions or questions, drawn once and written down.

    FOLDER/items.json     the items, in the order of the draw, and what was bad
    FOLDER/pictures/      their pictures as the model sees them, each named by its pixels

Items are drawn by a hash of seed and id, so that neither the order of a source nor its division
into files changes the draw. Pictures stream: no more than one is in memory.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cm3leon_jax import config, processes
from cm3leon_jax.checkpoint import write_json
from cm3leon_jax.data import sources
from cm3leon_jax.data.pictures import Picture, open_picture, to_png
from cm3leon_jax.data.records import Record, Skipped, is_held_out, picture_of
from cm3leon_jax.evaluation.parts import wait_for, write_bytes
from cm3leon_jax.fields import require

Split = Literal["held_out", "all"]
Kind = Literal["captions", "questions"]
OPTIONS = re.compile(r"\([A-Z]\) (.*?)(?= \([A-Z]\) |$)")  # as `data.questions` words them


@dataclass(frozen=True)
class Item:
    """One picture with the captions of it, or with a question and the answers of people."""

    id: str
    picture: str = ""  # a file of pictures/
    texts: tuple[str, ...] = ()
    question: str = ""
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()


class Entry(NamedTuple):
    """What a source says about an item. Texts and answers of entries with one id are put together;
    the first picture counts."""

    item: Item
    picture: Picture
    origin: str


Source = Callable[[Skipped], Iterator[Entry]]
"""Streams entries, and may be called again; bad records go to the list."""


class Inputs(NamedTuple):
    """Items, the folder of their pictures, what was bad, and 16 hex digits of all of it."""

    items: list[Item]
    folder: Path
    size: int
    bad: list[str]
    hash: str

    def pictures(self, rows: Sequence[int]) -> NDArray[np.uint8]:
        """Those of some items [B Y X 3]."""
        return read_pictures([self.folder / self.items[i].picture for i in rows], self.size)


def draw_inputs(
    folder: Path, source: Source, count: int, seed: int, size: int, max_bad_fraction: float
) -> Inputs:
    """Draws `count` items (or all there are), writes their pictures at `size` pixels, or reads what
    an earlier call has left in the folder.

    Raises ValueError for a source without items, or with too many bad ones.
    """
    path = folder / "items.json"
    if not path.exists() and processes.is_first():
        _draw(folder, source, count, seed, size, max_bad_fraction)
    wait_for([path])
    content = json.loads(path.read_text("utf-8"))
    items = [Item(**_to_tuples(each)) for each in content["items"]]
    digest = hashlib.sha256(json.dumps(content["items"]).encode()).hexdigest()[:16]
    return Inputs(items, folder / "pictures", size, content["bad"], digest)


def _to_tuples(content: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(v) if isinstance(v, list) else v for name, v in content.items()}


def _draw(
    folder: Path, source: Source, count: int, seed: int, size: int, max_bad_fraction: float
) -> None:
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    skipped, found = Skipped(), dict[str, Item]()
    for item, _, _ in source(skipped):
        known = found.setdefault(item.id, replace(item, texts=(), answers=()))
        found[item.id] = replace(
            known, texts=known.texts + item.texts, answers=known.answers + item.answers
        )
    require(bool(found), "data", 0, "use a source with pictures and texts, or --split all")
    drawn = sorted(found, key=lambda id: order(seed, id))[:count]
    missing, seen = set(drawn), dict[str, str]()
    for item, picture, origin in source(Skipped()):
        if item.id in missing:
            missing.remove(item.id)
            try:
                seen[item.id] = _write_picture(folder / "pictures", picture, size)
            except (ValueError, OSError) as error:
                skipped.add(origin, str(error))
    skipped.seen = max(skipped.seen, len(drawn))
    skipped.check(max_bad_fraction)
    items = [asdict(replace(found[id], picture=seen[id])) for id in drawn if id in seen]
    write_json(folder / "items.json", {"items": items, "bad": skipped.reasons})


def order(seed: int, id: str) -> bytes:
    """What items are sorted by for a draw, and one of several captions is chosen by."""
    return hashlib.sha256(f"{seed}:{id}".encode()).digest()


def from_records(data: config.Data, size: int, split: Split, kind: Kind) -> Source:
    """Records of `data.source`, read as `data.task` says. Captions of one group belong to one
    picture, and so do the answers to one question about a group."""

    def read(skipped: Skipped) -> Iterator[Entry]:
        for part in sources.plan(data, size):
            for record in sources.read(part, data, size, skipped):
                if split == "all" or is_held_out(record.group, data.held_out):
                    yield from _to_entries(record, kind)

    return read


def _to_entries(record: Record, kind: str) -> Iterator[Entry]:
    """None where the record is of another kind."""
    texts = tuple(part for part in record.segments if isinstance(part, str))
    picture = picture_of(record.segments)
    origin = record.origin or record.id
    if picture is None or record.instruction is not None:
        return
    if kind == "captions" and texts:
        yield Entry(Item(record.group, texts=texts), picture, origin)
    if kind == "questions" and record.question is not None and record.answer is not None:
        id, answers = f"{record.group}: {record.question}", record.answers or (record.answer,)
        _, _, options = record.question.partition("\nOptions: ")
        choices = tuple(OPTIONS.findall(options))
        yield Entry(Item(id, "", (), record.question, answers, choices), picture, origin)


def read_pictures(paths: list[Path], size: int) -> NDArray[np.uint8]:
    """[B size size 3] of files, resized and cropped where they are not of that size."""
    return np.stack([open_picture(path, size) for path in paths])


def _write_picture(folder: Path, picture: Picture, size: int) -> str:
    pixels = open_picture(picture, size)
    name = f"{hashlib.sha256(pixels.tobytes()).hexdigest()[:20]}.png"
    if not (folder / name).exists():
        write_bytes(folder / name, to_png(pixels))
    return name


def list_files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files with one of the suffixes in a folder and those inside it, by name."""
    require(folder.is_dir(), "folder", str(folder), "use a folder that exists")
    found = [path for path in folder.rglob("*") if path.suffix.lower() in suffixes]
    return sorted(path for path in found if not path.name.startswith("."))


def describe(inputs: Inputs, data: str, split: str, seed: int) -> dict[str, Any]:
    """The part of a protocol that says what was measured on."""
    return {
        "dataset": data,
        "dataset_hash": inputs.hash,
        "split": split,
        "count": len(inputs.items),
        "seed": seed,
        "size": inputs.size,
        "picture_resampling": "centre square, LANCZOS",
    }
