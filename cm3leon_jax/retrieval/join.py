"""The join: neighbours for every document, part by part of the vectors, resumable.

    neighbours/train-00000-of-00009.npy   NEIGHBOUR [rows by_text + by_image], one file a part
    neighbours/train.join.json            what they are made with; another one starts anew
    neighbours/train.json                 the finished set (`mapped`)

Several processes of one program share the work: each takes every so-manieth part, and where their
search is one over a mesh, all ask it together and equally often.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from math import ceil
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cm3leon_jax import config, processes
from cm3leon_jax.checkpoint import write_json
from cm3leon_jax.mapped import Mapped, finish_mapped, part_path, write_mapped_part
from cm3leon_jax.retrieval.index import Rows
from cm3leon_jax.retrieval.memory import Memory
from cm3leon_jax.retrieval.strategy import NEIGHBOUR, count_verdicts, judge

BLOCK = 256  # documents at once: with 2 x 64 candidates of 512 numbers, 134 MB
RULES = ("by_text", "by_image", "candidates", "max_score", "max_similarity")  # a join obeys these
PROBES = 64  # vectors that stand for all of them where sets are compared


def join(
    queries: Mapped, memory: Memory, rules: config.Retrieval, folder: Path, name: str, same: bool
) -> Mapped:
    """Writes the neighbours of all documents of `queries` [N 3 E] to the set `name` of `folder`.

    `same`: the queries are the memory's own documents, so that none is its own neighbour. Parts
    that are there from an interrupted run of the same join are kept. Raises ValueError if another
    retriever made the memory.
    """
    made_with = _describe(queries, memory, rules, same)
    bounds = queries.bounds
    me, hosts = jax.process_index(), jax.process_count()
    if me == 0:
        _clear_unless(folder, name, made_with)
    processes.wait_for_all("join begins")
    of = len(bounds)
    missing = [n for n in range(of) if not part_path(folder, name, n, of).exists()]
    sizes = [ceil((bounds[n][1] - bounds[n][0]) / BLOCK) for n in missing]
    turns = max((sum(sizes[host::hosts]) for host in range(hosts)), default=0)
    documents = sum(bounds[n][1] - bounds[n][0] for n in missing[me::hosts])
    with tqdm(total=documents, desc=f"retrieve {name}", unit="documents", disable=me > 0) as bar:
        for number in missing[me::hosts]:
            blocks = [np.empty((0, rules.by_text + rules.by_image), NEIGHBOUR)]
            for start, stop in _blocks(*bounds[number]):
                blocks.append(_find(queries, start, stop, memory, rules, same))
                turns -= 1
                bar.update(stop - start)
            write_mapped_part(folder, name, number, of, np.concatenate(blocks))
        for _ in range(turns):  # the others are not done yet and ask together with this one
            _find(queries, 0, 0, memory, rules, same)
    processes.wait_for_all("join ends")
    if me == 0:
        finish_mapped(folder, name, of, made_with)
    processes.wait_for_all("join is finished")
    return Mapped(folder, name)


def summarize(neighbours: Rows) -> dict[str, float]:
    """Share of documents with k neighbours ("with 2"), and mean scores ("score by text")."""
    width = neighbours.shape[1]
    counts, scores, found = np.zeros(width + 1, np.int64), np.zeros(2), np.zeros(2, np.int64)
    for start in range(0, len(neighbours), 65_536):
        some = neighbours[start : start + 65_536]
        there = some["row"] >= 0
        counts += np.bincount(there.sum(axis=1), minlength=width + 1)
        for way in (0, 1):
            mine = some["score"][there & (some["by"] == way)]
            scores[way] += mine.sum(dtype=np.float64)
            found[way] += mine.size
    total = max(len(neighbours), 1)
    shares = {f"with {k}": count / total for k, count in enumerate(counts.tolist())}
    means = (scores / np.maximum(found, 1)).tolist()
    return shares | {"score by text": means[0], "score by image": means[1]}


def explain(
    queries: Rows, memory: Memory, rules: config.Retrieval, same: bool, count: int = 1000
) -> Mapping[str, float]:
    """How often each rule refuses a candidate, on `count` evenly spaced documents, if any."""
    count = min(count, len(queries))
    own = np.arange(count) * len(queries) // count
    verdicts = []
    for start, stop in _blocks(0, count):
        some = np.asarray(queries[own[start:stop]], np.float32)
        found = memory.find(some[:, 1], some[:, 2], rules)
        verdicts.append(judge(found, rules, own[start:stop] if same else None, some[:, 0]))
    return count_verdicts(np.concatenate(verdicts)) if verdicts else {}


def _find(
    queries: Rows, start: int, stop: int, memory: Memory, rules: config.Retrieval, same: bool
) -> NDArray[np.void]:
    """Neighbours of the documents from `start` to `stop`, at most a block of them.

    A block is always filled up with empty queries, which find nothing: every search has one shape.
    """
    some = np.zeros((BLOCK, *queries.shape[1:]), np.float32)
    some[: stop - start] = queries[start:stop]
    own = np.arange(start, start + BLOCK) if same else None
    found = memory.neighbours(some[:, 1], some[:, 2], own, some[:, 0], rules=rules)
    return found[: stop - start]


def _blocks(start: int, stop: int) -> Iterator[tuple[int, int]]:
    yield from ((at, min(at + BLOCK, stop)) for at in range(start, stop, BLOCK))


def _describe(
    queries: Mapped, memory: Memory, rules: config.Retrieval, same: bool
) -> dict[str, Any]:
    """What neighbours are made with and from, after a check that the two sides fit."""
    assert memory.index is not None
    ours, theirs = queries.meta.get("retriever", "none"), memory.retriever
    if ours != theirs:
        raise ValueError(
            f"memory: was made with the retriever {theirs}, the queries with {ours};"
            " prepare both with one retriever"
        )
    fits = queries.shape[2] == memory.vectors.shape[2]
    if not fits or (same and len(queries) != len(memory.vectors)):
        raise ValueError(
            f"queries are {list(queries.shape)}, the memory {list(memory.vectors.shape)}: vectors"
            " must be as wide, and with same=True as many"
        )
    return {
        "rules": {rule: getattr(rules, rule) for rule in RULES},
        "retriever": ours,
        "index": memory.index.form,
        "memory": {"count": len(memory.vectors), "digest": _digest(memory.vectors)},
        "queries": {"bounds": queries.bounds, "digest": _digest(queries), "same": same},
    }


def _digest(vectors: Rows) -> str:
    """16 hex digits of the shape and of some evenly spaced vectors."""
    count = min(PROBES, len(vectors))
    some = np.ascontiguousarray(vectors[np.arange(count) * len(vectors) // max(count, 1)])
    digest = hashlib.sha256(f"{vectors.shape} {some.dtype}".encode())
    digest.update(some.tobytes())
    return digest.hexdigest()[:16]


def _clear_unless(folder: Path, name: str, made_with: Mapping[str, Any]) -> None:
    """Removes the parts of a join that was made with anything else."""
    folder.mkdir(parents=True, exist_ok=True)
    card = folder / f"{name}.join.json"
    wanted = json.loads(json.dumps(made_with))
    if card.exists() and json.loads(card.read_text()) == wanted:
        return
    card.unlink(missing_ok=True)
    (folder / f"{name}.json").unlink(missing_ok=True)
    for part in folder.glob(f"{name}-?????-of-?????.npy"):
        part.unlink()
    write_json(card, made_with)
