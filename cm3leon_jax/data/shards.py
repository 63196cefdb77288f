"""Prepared records on disk: ArrayRecord shards with an index, read by number.

A set `name` in a folder is `name-00000-of-00002.array_record`, ... and `name.index.json`, which is
written last: a set without its index was never finished and is refused. No pickle, no TensorFlow.
"""

import bisect
import dataclasses
import itertools
import json
import operator
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cm3leon_jax.data.records import Box
from cm3leon_jax.mapped import part_path

VERSION = 2  # a new field with a default needs no other: records without it stay readable
HEADER = struct.Struct("<BBI")  # version, bytes of one code, bytes of the JSON that follows
SUFFIX = ".array_record"
OPENED = 64  # parts kept open at once: each takes a file handle


@dataclass(frozen=True, eq=False)  # arrays have no single truth value, so neither would ==
class CodedRecord:
    """One source record whose pictures are codes; its texts stay as they were.

    So templates and the text tokenizer may change without a new preparation. segments: str for a
    text, int32 [image_tokens] for an image, in reading order; the other fields are the record's.
    """

    id: str
    segments: tuple[str | NDArray[np.int32], ...]
    boxes: tuple[Box, ...] = ()
    question: str | None = None
    answer: str | None = None
    answers: tuple[str, ...] = ()
    instruction: str | None = None
    license: str = ""
    source_url: str = ""

    def __post_init__(self) -> None:
        if not (isinstance(self.id, str) and self.id and self.segments):
            raise ValueError(f"record {self.id!r}: give an id and one segment or more")
        for segment in self.segments:
            if isinstance(segment, str):
                continue
            if not isinstance(segment, np.ndarray):
                kind = type(segment).__name__
                raise ValueError(f"record {self.id!r}: a segment is {kind}: give texts and codes")
            if segment.shape != (segment.size,) or not segment.size or segment.dtype != np.int32:
                have = f"{segment.dtype} {list(segment.shape)}"
                raise ValueError(f"record {self.id!r}: codes are {have}: give int32 [N], N > 0")
            if segment.min() < 0:
                raise ValueError(f"record {self.id!r}: a code is {segment.min()}: give 0 or more")

    @property
    def texts(self) -> list[str]:
        return [part for part in self.segments if isinstance(part, str)]

    @property
    def images(self) -> list[NDArray[np.int32]]:
        return [part for part in self.segments if not isinstance(part, str)]


FIELDS = tuple(f for f in dataclasses.fields(CodedRecord) if f.name != "segments")


def to_bytes(record: CodedRecord) -> bytes:
    """The record as a header, JSON that holds the lengths of images, and all codes."""
    content: dict[str, Any] = {
        field.name: getattr(record, field.name)
        for field in FIELDS
        if getattr(record, field.name) != field.default
    }
    content["segments"] = [s if isinstance(s, str) else len(s) for s in record.segments]
    codes = np.concatenate([np.zeros(0, np.int32), *record.images])
    size = 2 if codes.size == 0 or codes.max() < 2**16 else 4
    text = json.dumps(content, ensure_ascii=False).encode()
    return HEADER.pack(VERSION, size, len(text)) + text + codes.astype(f"<u{size}").tobytes()


def from_bytes(data: bytes) -> CodedRecord:
    """The inverse of `to_bytes`. Raises ValueError for anything else."""
    if len(data) < HEADER.size or data[0] != VERSION:
        raise ValueError(f"not a prepared record of version {VERSION}: prepare the data again")
    _, size, length = HEADER.unpack_from(data)
    try:
        content = json.loads(data[HEADER.size : HEADER.size + length].decode())
        codes = np.frombuffer(data[HEADER.size + length :], f"<u{size}").astype(np.int32)
        lengths = [part for part in content["segments"] if not isinstance(part, str)]
        if sum(lengths) != len(codes) or min(lengths, default=1) < 1:
            raise ValueError("codes are missing or left over")
        images = iter(np.split(codes, list(itertools.accumulate(lengths))))
        segments = tuple(p if isinstance(p, str) else next(images) for p in content["segments"])
        boxes = tuple((label, tuple(corners)) for label, corners in content.get("boxes", ()))
        answers = tuple(content.get("answers", ()))
        told = {"segments": segments, "boxes": boxes, "answers": answers}
        return CodedRecord(**(content | told))
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise ValueError(f"a damaged record ({error}): prepare the data again") from None


def write_part(
    records: Iterable[CodedRecord], folder: Path, name: str, number: int, of: int
) -> None:
    """Writes part `number` of `of`, whole or not at all.

    An earlier set of this name is no longer one: it has to be finished anew.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    folder.mkdir(parents=True, exist_ok=True)
    final = part_path(folder, name, number, of, SUFFIX)
    partial = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    # One record a group: a random read decodes one record.
    writer = ArrayRecordWriter(str(partial), "group_size:1")
    try:
        try:
            for record in records:
                writer.write(to_bytes(record))
        finally:
            writer.close()
        _index_path(folder, name).unlink(missing_ok=True)
        partial.replace(final)
    finally:
        partial.unlink(missing_ok=True)


def finish_shards(
    folder: Path, name: str, counts: Sequence[int], made_by: Mapping[str, str] | None = None
) -> None:
    """Makes a set of the parts that were written, `counts` records in each.

    `made_by` are the fingerprints of the networks that the records depend on, by name.
    """
    parts = [part_path(folder, name, i, len(counts), SUFFIX) for i in range(len(counts))]
    entries = [
        {"documents": count, "bytes": part.stat().st_size} for part, count in zip(parts, counts)
    ]
    content = {"version": VERSION, "made_by": dict(made_by or {}), "parts": entries}
    index = _index_path(folder, name)
    partial = index.with_name(f".{index.name}.{os.getpid()}.tmp")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(index)


def write_shards(
    records: Sequence[CodedRecord],
    folder: Path,
    name: str,
    made_by: Mapping[str, str] | None = None,
) -> None:
    """Writes a whole set in one part."""
    write_part(records, folder, name, 0, 1)
    finish_shards(folder, name, [len(records)], made_by)


class Shards:
    """Random access to a finished set: `len(shards)`, `shards[i]`, part after part.

    Opening checks that every part is there and whole; a part is opened when a record of it is asked
    for, and few stay open. Pickled as its place, so a loader may hand it to its workers.
    """

    def __init__(self, folder: Path | str, name: str) -> None:
        self._place = (folder, name)
        folder = Path(folder)
        path = _index_path(folder, name)
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: the set {name!r} was not finished, prepare the data again"
            )
        try:
            index = json.loads(path.read_text())
            version, self.made_by = index["version"], dict[str, str](index.get("made_by", {}))
            counts = [int(part["documents"]) for part in index["parts"]]
            sizes = [int(part["bytes"]) for part in index["parts"]]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path} is not an index of shards: prepare the data again") from None
        if version != VERSION:
            raise ValueError(f"{path} has version {version}, known is {VERSION}: prepare it again")
        parts = tuple(part_path(folder, name, i, len(sizes), SUFFIX) for i in range(len(sizes)))
        for part, size in zip(parts, sizes):
            if not part.is_file():
                raise FileNotFoundError(f"{part} is missing: copy it or prepare the data again")
            if part.stat().st_size != size:
                raise ValueError(
                    f"{part} has {part.stat().st_size} bytes, the index says {size}: it is "
                    "truncated or changed, copy it or prepare the data again"
                )
        self.parts = parts
        self._ends = list(itertools.accumulate(counts))
        self._open = lru_cache(OPENED)(lambda number: _open(parts[number]))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> CodedRecord:
        i = operator.index(index)
        if not -len(self) <= i < len(self):
            raise IndexError(f"document {i} of {len(self)}")
        i %= len(self)
        part = bisect.bisect_right(self._ends, i)
        row = i - (self._ends[part - 1] if part else 0)
        try:
            return from_bytes(self._open(part).read([row])[0])
        except Exception as error:  # ArrayRecord raises bare RuntimeError, IndexError, ValueError
            raise ValueError(f"{self.parts[part]}, record {row}: {error}") from error

    def __reduce__(self) -> tuple[Any, ...]:
        return Shards, self._place


def _open(part: Path) -> Any:
    from array_record.python.array_record_module import ArrayRecordReader

    # For random reads.
    return ArrayRecordReader(str(part), "readahead_buffer_size:0,max_parallelism:0")


def _index_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.index.json"
