"""Token documents on disk: ArrayRecord shards with an index, read by number.

A set `name` in a folder is `name-00000-of-00002.array_record`, ... and `name.index.json`, which is
written last: a set without its index was never finished and is refused. No pickle, no TensorFlow.
"""

import bisect
import contextlib
import itertools
import json
import operator
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

Span = tuple[Literal["text", "image"], int, int]
"""Kind, start and length of one segment, counted in ids."""

VERSION = 1
KINDS: tuple[Literal["text", "image"], ...] = ("text", "image")
# Version, bytes of id and of source, then counts of ids, spans and embedding numbers (0: none).
HEADER = struct.Struct("<BHHIHH")
SPAN = np.dtype([("kind", "u1"), ("start", "<u4"), ("length", "<u4")])


@dataclass(frozen=True, eq=False)  # arrays have no single truth value, so neither would ==
class TokenDocument:
    """One tokenized record.

    ids:        uint32 [T], the document in the joint id space.
    spans:      its segments in order, apart from one another and inside `ids`.
    source:     where the record came from, for licences and messages.
    embedding:  float16 [D] of the retriever, or None.
    """

    id: str
    ids: np.ndarray
    spans: tuple[Span, ...]
    source: str = ""
    embedding: np.ndarray | None = None

    def __post_init__(self) -> None:
        _check_array("ids", self.ids, np.uint32)
        if self.embedding is not None:
            _check_array("embedding", self.embedding, np.float16)
        if not self.id:
            raise ValueError("id is empty: give the record's id")
        end = 0
        for kind, start, length in self.spans:
            if kind not in KINDS or start < end or length < 1 or start + length > len(self.ids):
                raise ValueError(
                    f"span {(kind, start, length)} after {end} of {len(self.ids)} ids: spans are "
                    "text or image, in order, apart and inside the document"
                )
            end = start + length


def to_bytes(document: TokenDocument) -> bytes:
    """The document as a header, its two strings and three little-endian arrays."""
    id, source = document.id.encode(), document.source.encode()
    spans = np.array([(KINDS.index(kind), *place) for kind, *place in document.spans], SPAN)
    embedding = np.zeros(0, np.float16) if document.embedding is None else document.embedding
    counts = (len(id), len(source), len(document.ids), len(spans), len(embedding))
    try:
        header = HEADER.pack(VERSION, *counts)
    except struct.error:
        raise ValueError(
            f"document {document.id[:80]!r} is too large: id, source, ids, spans, embedding are "
            f"{counts}, at most (65535, 65535, 4294967295, 65535, 65535)"
        ) from None
    arrays = document.ids.astype("<u4"), spans, embedding.astype("<f2")
    return b"".join([header, id, source, *(array.tobytes() for array in arrays)])


def from_bytes(data: bytes) -> TokenDocument:
    """The inverse of `to_bytes`. Raises ValueError for anything else."""
    if not data or data[0] != VERSION:
        raise ValueError(f"not a token document of version {VERSION}: prepare the data again")
    if len(data) < HEADER.size:
        raise ValueError(f"{len(data)} bytes are shorter than the header: prepare the data again")
    id, source, ids, spans, embedding = HEADER.unpack_from(data)[1:]
    sizes = [id, source, 4 * ids, SPAN.itemsize * spans, 2 * embedding]
    ends = list(itertools.accumulate(sizes, initial=HEADER.size))
    if ends[-1] != len(data):
        raise ValueError(f"{len(data)} bytes where the header says {ends[-1]}: prepare it again")
    parts = [data[start:end] for start, end in itertools.pairwise(ends)]
    table = np.frombuffer(parts[3], SPAN)
    if spans and table["kind"].max() >= len(KINDS):
        raise ValueError(f"unknown span kind {table['kind'].max()}: prepare the data again")
    return TokenDocument(
        id=parts[0].decode(),
        ids=np.frombuffer(parts[2], "<u4").astype(np.uint32),
        spans=tuple((KINDS[kind], start, length) for kind, start, length in table.tolist()),
        source=parts[1].decode(),
        embedding=np.frombuffer(parts[4], "<f2").astype(np.float16) if embedding else None,
    )


def write_shards(
    documents: Iterable[TokenDocument], folder: Path | str, name: str, shards: int = 1
) -> Path:
    """Deals the documents out to `shards` files and returns the path of the index.

    Everything is written under temporary names and renamed at the end, the index last. An error in
    between leaves an earlier set of the name as it was, or, between two renames, without an index.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    if shards < 1:
        raise ValueError(f"shards={shards}: write at least 1")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parts = [folder / f"{name}-{i:05}-of-{shards:05}.array_record" for i in range(shards)]
    partials = [part.with_name(f"{part.name}.{os.getpid()}.tmp") for part in parts]
    counts = [0] * shards
    with contextlib.ExitStack() as cleanup:
        for partial in partials:
            cleanup.callback(partial.unlink, missing_ok=True)
        # One record a group: a random read decodes one document.
        writers = [ArrayRecordWriter(str(partial), "group_size:1") for partial in partials]
        try:
            for document, i in zip(documents, itertools.cycle(range(shards))):
                writers[i].write(to_bytes(document))
                counts[i] += 1
        finally:
            for writer in writers:
                writer.close()
        index = _index_path(folder, name)
        index.unlink(missing_ok=True)
        for partial, part in zip(partials, parts):
            partial.replace(part)
    entries = [
        {"file": part.name, "documents": count, "bytes": part.stat().st_size}
        for part, count in zip(parts, counts)
    ]
    partial = index.with_name(f"{index.name}.{os.getpid()}.tmp")
    partial.write_text(json.dumps({"version": VERSION, "parts": entries}, indent=1) + "\n")
    partial.replace(index)
    return index


class Shards:
    """Random access to a finished set: `len(shards)`, `shards[i]`, part after part.

    Opening checks that every part is there and whole. Files are opened at the first read and not
    pickled, so a loader may hand the object to its workers.
    """

    def __init__(self, folder: Path | str, name: str) -> None:
        folder = Path(folder)
        path = _index_path(folder, name)
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: the set {name!r} was not finished, prepare the data again"
            )
        try:
            index = json.loads(path.read_text())
            version = index["version"]
            entries = [(folder / p["file"], p["documents"], p["bytes"]) for p in index["parts"]]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path} is not an index of shards: prepare the data again") from None
        if version != VERSION:
            raise ValueError(f"{path} has version {version}, known is {VERSION}: prepare it again")
        for part, _, size in entries:
            if not part.is_file():
                raise FileNotFoundError(f"{part} is missing: copy it or prepare the data again")
            if part.stat().st_size != size:
                raise ValueError(
                    f"{part} has {part.stat().st_size} bytes, the index says {size}: it is "
                    "truncated or changed, copy it or prepare the data again"
                )
        self.parts = tuple(part for part, _, _ in entries)
        self._ends = list(itertools.accumulate(count for _, count, _ in entries))
        self._readers: dict[int, Any] = {}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> TokenDocument:
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

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": {}}

    def _open(self, part: int) -> Any:
        from array_record.python.array_record_module import ArrayRecordReader

        if part not in self._readers:
            options = "readahead_buffer_size:0,max_parallelism:0"  # for random reads
            self._readers[part] = ArrayRecordReader(str(self.parts[part]), options)
        return self._readers[part]


def _index_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.index.json"


def _check_array(name: str, value: Any, dtype: type) -> None:
    if (
        not isinstance(value, np.ndarray)
        or value.dtype != dtype
        or value.ndim != 1
        or not len(value)
    ):
        have = (
            f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value)
        )
        raise ValueError(f"{name} is {have}: give {np.dtype(dtype).name} [N] with N >= 1")
