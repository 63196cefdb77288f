"""Arrays on disk in numbered parts, memory-mapped: vectors and neighbours of millions of documents.

A set `name` is `name-00000-of-00002.npy`, ... and `name.json`, which is written last: a set without
it was never finished and is refused. Nothing is read through pickle.
"""

import itertools
import json
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAPPED = 64  # parts kept mapped at once: each takes a file handle


def part_path(folder: Path, name: str, number: int, of: int, suffix: str = ".npy") -> Path:
    """The file of one part."""
    return folder / f"{name}-{number:05}-of-{of:05}{suffix}"


def write_mapped_part(folder: Path, name: str, number: int, of: int, array: NDArray[Any]) -> None:
    """Writes part `number` of `of`, an array [N ...], whole or not at all.

    An earlier set of this name is no longer one: it has to be finished anew.
    """
    if array.ndim == 0 or array.dtype.hasobject:
        have = f"{array.dtype} {list(array.shape)}"
        raise ValueError(f"part {number} of {name!r} is {have}: give rows of numbers [N ...]")
    folder.mkdir(parents=True, exist_ok=True)
    final = part_path(folder, name, number, of)
    partial = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    try:
        with partial.open("wb") as stream:
            np.save(stream, array, allow_pickle=False)
        _index_path(folder, name).unlink(missing_ok=True)
        partial.replace(final)
    finally:
        partial.unlink(missing_ok=True)


def finish_mapped(folder: Path, name: str, of: int, meta: Mapping[str, Any]) -> None:
    """Makes a set of the parts that were written; `meta` is what it was made from and with.

    Raises FileNotFoundError for a part that is missing, ValueError for parts of different forms.
    """
    if of < 1:
        raise ValueError(f"set {name!r} of {of} parts: write one part or more, it may have no rows")
    entries, first = [], _open(part_path(folder, name, 0, of))
    for number in range(of):
        path = part_path(folder, name, number, of)
        part = _open(path)
        if (part.dtype, part.shape[1:]) != (first.dtype, first.shape[1:]):
            here, there = (f"{a.dtype} {list(a.shape[1:])}" for a in (part, first))
            raise ValueError(f"{path} has rows {here}, the first part {there}: write one form")
        entries.append({"rows": len(part), "bytes": path.stat().st_size})
    final = _index_path(folder, name)
    partial = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    partial.write_text(json.dumps({"meta": dict(meta), "parts": entries}, indent=1) + "\n")
    partial.replace(final)


class Mapped:
    """A finished set as one array: `len`, `shape`, `dtype`, and rows by slice or by number.

    Opening checks that every part is there and whole; a part is mapped when rows of it are asked
    for, and few stay mapped. Pickled as its place, so a loader may hand it to its workers.
    """

    def __init__(self, folder: Path | str, name: str) -> None:
        self._place = (Path(folder), name)
        path = _index_path(Path(folder), name)
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: the set {name!r} was not finished, make it again"
            )
        try:
            content = json.loads(path.read_text())
            self.meta = dict[str, Any](content["meta"])
            rows, sizes = zip(*((int(p["rows"]), int(p["bytes"])) for p in content["parts"]))
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path} is not an index of arrays: make it again") from None
        parts = [part_path(path.parent, name, i, len(rows)) for i in range(len(rows))]
        for part, size in zip(parts, sizes):
            if not part.is_file():
                raise FileNotFoundError(f"{part} is missing: copy it or make the set again")
            if part.stat().st_size != size:
                raise ValueError(
                    f"{part} has {part.stat().st_size} bytes, the index says {size}: it is"
                    " truncated or changed, copy it or make the set again"
                )
        self._edges = np.array(list(itertools.accumulate(rows, initial=0)), np.int64)
        self._part = lru_cache(MAPPED)(lambda number: _open(parts[number]))
        self.dtype = self._part(0).dtype
        self.shape = (int(self._edges[-1]), *self._part(0).shape[1:])

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """First row and the row behind the last one, of every part."""
        return list(itertools.pairwise(self._edges.tolist()))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | int | list[int] | NDArray[np.integer]) -> NDArray[Any]:
        """A copy of those rows [... of the numbers, ... of a row]; numbers are 0 or more."""
        if isinstance(rows, slice):
            numbers = np.arange(*rows.indices(len(self)))
        else:
            numbers = np.asarray(rows, None if np.size(rows) else np.int64)
        if numbers.dtype.kind not in "iu":
            raise ValueError(f"rows are {numbers.dtype}: give a slice or whole numbers")
        if numbers.size and (numbers.min() < 0 or numbers.max() >= len(self)):
            raise IndexError(f"rows {numbers.min()} to {numbers.max()} of {len(self)}")
        numbers = numbers.astype(np.int64, copy=False)
        found = np.empty((*numbers.shape, *self.shape[1:]), self.dtype)
        parts = np.searchsorted(self._edges, numbers, side="right") - 1
        for number in np.unique(parts).tolist():
            here = parts == number
            found[here] = self._part(number)[numbers[here] - self._edges[number]]
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return Mapped, self._place


def _open(part: Path) -> NDArray[Any]:
    try:
        return np.load(part, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{part} is not whole ({error}): make the set again") from None


def _index_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"
