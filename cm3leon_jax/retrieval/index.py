"""Maximum-inner-product search with FAISS on a host: exact while the vectors fit, IVF-PQ beyond.

Everything that searches answers `search(queries, count)` in the form of `Search`; `mesh_search`
does so on all devices. FAISS is an extra: `pip install 'cm3leon_jax[faiss]'`.

Bytes of N vectors of E numbers: exact 4NE, that is 205 MB for 100,000 of 512 and 696 GB for 340M.
IVF-PQ keeps `code` bytes and 8 of the row for each, 4E of every list's centre and 1024E of the
codebooks: 340M with codes of 64 bytes take 24.6 GB.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isqrt
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cm3leon_jax.checkpoint import write_json

BLOCK = 65_536  # vectors in memory at once while an index is filled
CENTRES = 256  # of a product quantizer: a code is a byte
SAMPLES = 39  # vectors to train one centre on, below which FAISS warns
PROBED = 16  # one of so many lists is searched


class Rows(Protocol):
    """An array read by rows: an ndarray, a `mapped.Mapped`, or a view of one."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, rows: Any, /) -> Any: ...


class Search(Protocol):
    """The rows of greatest inner product.

    search: queries [Q E] -> scores float32 and rows int64 [Q count], best first; where there are
    fewer rows, the score is -inf and the row -1. form: what it finds, "exact" or how nearly.
    """

    @property
    def form(self) -> str: ...
    def search(
        self, queries: NDArray[Any], count: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]: ...


@dataclass(frozen=True)
class Kind:
    """A FAISS index: exact, or with `lists` > 0 inverted lists of quantized vectors."""

    lists: int = 0
    code: int = 0  # bytes of a quantized vector
    probes: int = 0  # lists searched for a query

    def bytes(self, count: int, width: int) -> int:
        """Memory of `count` vectors of `width` numbers."""
        if not self.lists:
            return 4 * count * width
        return count * (self.code + 8) + 4 * width * (self.lists + CENTRES)


def choose_kind(count: int, width: int, budget: int) -> Kind:
    """The most exact kind whose index fits into `budget` bytes.

    That is flat, else IVF-PQ with the longest code that fits: E/2, E/4, ... bytes for E numbers;
    with the power of two up to 4 sqrt(N) lists (FAISS' own advice) that N vectors can train.
    """
    if Kind().bytes(count, width) <= budget:
        return Kind()
    most = min(4 * isqrt(count), count // SAMPLES)
    lists = 1 << max(most, 1).bit_length() - 1
    code = width // 2
    while code > 1 and width % code == 0:
        kind = Kind(lists, code, max(1, lists // PROBED))
        if count >= SAMPLES * CENTRES and kind.bytes(count, width) <= budget:
            return kind
        code //= 2
    raise ValueError(
        f"budget={budget:,} bytes: {count:,} vectors of {width} numbers take"
        f" {Kind().bytes(count, width):,} exactly and their shortest codes do not fit either or"
        f" need {SAMPLES * CENTRES:,} vectors to train on; give more memory"
    )


class FaissSearch:
    """A filled FAISS index and its kind."""

    def __init__(self, index: Any, kind: Kind) -> None:
        self.index, self.kind = index, kind
        if kind.lists:
            index.nprobe = kind.probes

    @property
    def form(self) -> str:
        """What it finds: "exact", or the parameters of its lists and codes."""
        k = self.kind
        return f"IVF{k.lists},PQ{k.code},probes {k.probes}" if k.lists else "exact"

    def search(
        self, queries: NDArray[Any], count: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """See `Search`. Scores of a quantized index are approximate."""
        check_queries(queries, self.index.d, count)
        scores, rows = self.index.search(np.ascontiguousarray(queries, np.float32), count)
        return np.where(rows < 0, -np.inf, scores).astype(np.float32), rows

    def save(self, folder: Path, name: str, made_by: Mapping[str, str]) -> None:
        """Writes `name.faiss` and, last, `name.faiss.json`: what it is and what made it."""
        import faiss

        folder.mkdir(parents=True, exist_ok=True)
        final, card = _paths(folder, name)
        card.unlink(missing_ok=True)
        partial = final.with_name(f".{final.name}.{os.getpid()}.tmp")
        faiss.write_index(self.index, str(partial))
        partial.replace(final)
        kind = asdict(self.kind)
        write_json(card, {"kind": kind, "count": self.index.ntotal, "made_by": dict(made_by)})


def build_faiss(vectors: Rows, kind: Kind) -> FaissSearch:
    """Indexes vectors [N E], read block by block; a quantizer learns from evenly spaced ones."""
    import faiss

    count, width = vectors.shape
    # "np": without an ordering of the codes that takes most of the time and serves other searches.
    form = f"IVF{kind.lists},PQ{kind.code}np" if kind.lists else "Flat"
    index = faiss.index_factory(width, form, faiss.METRIC_INNER_PRODUCT)
    if kind.lists:
        wanted = min(count, SAMPLES * max(kind.lists, CENTRES))
        sample = np.arange(wanted) * count // wanted
        index.train(np.asarray(vectors[sample], np.float32))
    for start in range(0, count, BLOCK):
        index.add(np.asarray(vectors[start : start + BLOCK], np.float32))
    return FaissSearch(index, kind)


def load_faiss(folder: Path, name: str, made_by: Mapping[str, str], count: int) -> FaissSearch:
    """The index that `save` wrote. Raises ValueError if it was made by or of something else."""
    import faiss

    path, card = _paths(folder, name)
    if not card.is_file():
        raise FileNotFoundError(f"{card} is missing: the index was not finished, make it again")
    content = json.loads(card.read_text())
    for what, ours in made_by.items():
        theirs = content["made_by"].get(what)
        if theirs != ours:
            raise ValueError(
                f"{path}: made with {what} {theirs}, wanted is {ours}: build the index again"
            )
    if content["count"] != count:
        raise ValueError(
            f"{path} holds {content['count']} vectors, the memory {count}: build again"
        )
    index = faiss.read_index(str(path))
    if index.ntotal != count:
        raise ValueError(f"{path} holds {index.ntotal} vectors, its card says {count}: build again")
    return FaissSearch(index, Kind(**content["kind"]))


def check_queries(queries: NDArray[Any], width: int, count: int) -> None:
    """Raises unless queries are [Q width] and at least one row is asked for."""
    if queries.ndim != 2 or queries.shape[1] != width:
        raise ValueError(f"queries are {list(queries.shape)}: give [Q {width}], as the index has")
    if count < 1:
        raise ValueError(f"count={count}: ask for at least 1 row")


def _paths(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"{name}.faiss", folder / f"{name}.faiss.json"
