"""Which of the documents that were found stand in front of another one (paper section 2.1).

    relevance  not the document itself; no near copy of its query (score > max_score); no near copy
               of the document (similarity of document vectors > max_similarity)
    modality   only documents with both a text and an image
    diversity  in order of score, those found by text first: none whose vector is nearer than
               max_similarity to one already taken. The document itself counts as taken, which is
               the last rule of relevance

Pure functions of NumPy arrays. Axes: `Q` queries, `W` ways (found by text, by image), `C`
candidates of a way, `E` vector.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from cm3leon_jax import config

NEIGHBOUR = np.dtype([("row", "<i8"), ("score", "<f2"), ("by", "u1")])
"""A row of the memory (-1: none), its score (-inf: none), and the way: 0 by text, 1 by image."""


class Verdict(IntEnum):
    """Why a candidate is taken or not; where several rules refuse it, the first one here."""

    TAKEN = 0
    SPARE = 1  # enough were taken before its turn
    NOTHING = 2  # the search found no more, or there was no query
    ITSELF = 3
    RELEVANCE = 4
    MODALITY = 5
    COPY = 6
    DIVERSITY = 7


@dataclass(frozen=True)
class Candidates:
    """What was found for Q queries, best first in each way.

    rows:      int64 [Q W C] of the memory, -1 where nothing was found.
    scores:    float32 [Q W C], inner product of the query with the candidate's document vector.
    vectors:   float32 [Q W C E], the candidates' document vectors.
    complete:  bool [Q W C], the candidate has both a text and an image.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    vectors: NDArray[np.float32]
    complete: NDArray[np.bool_]


def choose(
    candidates: Candidates,
    rules: config.Retrieval,
    own: NDArray[np.int64] | None = None,
    document: NDArray[np.float32] | None = None,
) -> NDArray[np.void]:
    """NEIGHBOUR [Q by_text + by_image]: each way's in order of score, then -1 where fewer survive.

    `own` [Q] are the queries' own rows in the memory, `document` [Q E] their document vectors.
    """
    verdicts = judge(candidates, rules, own, document)
    chosen = np.zeros((len(verdicts), rules.by_text + rules.by_image), NEIGHBOUR)
    chosen["row"], chosen["score"] = -1, -np.inf
    chosen["by"][:, rules.by_text :] = 1
    for way, first in ((0, 0), (1, rules.by_text)):
        query, column = np.nonzero(verdicts[:, way] == Verdict.TAKEN)
        # The how-manieth of its query each one is: nonzero goes through the queries in order.
        slot = first + np.arange(len(query)) - np.searchsorted(query, query)
        chosen["row"][query, slot] = candidates.rows[query, way, column]
        chosen["score"][query, slot] = candidates.scores[query, way, column]
    return chosen


def judge(
    candidates: Candidates,
    rules: config.Retrieval,
    own: NDArray[np.int64] | None = None,
    document: NDArray[np.float32] | None = None,
) -> NDArray[np.uint8]:
    """The Verdict on each candidate, uint8 [Q W C]; arguments as in `choose`."""
    rows = candidates.rows
    refusals = {
        Verdict.NOTHING: rows < 0,
        Verdict.RELEVANCE: candidates.scores > _limit(rules.max_score),
        Verdict.MODALITY: ~candidates.complete,
    }
    if own is not None:
        refusals[Verdict.ITSELF] = rows == own[:, None, None]
    if document is not None:
        nearness = np.einsum("qwce,qe->qwc", candidates.vectors, document)
        refusals[Verdict.COPY] = nearness > _limit(rules.max_similarity)
    verdicts = np.full(rows.shape, Verdict.SPARE, np.uint8)
    for verdict in sorted(refusals, reverse=True):  # the first rule has the last word
        verdicts[refusals[verdict]] = verdict
    for way, count in enumerate((rules.by_text, rules.by_image)):
        for _ in range(count):
            _take_next(candidates, verdicts, way, _limit(rules.max_similarity))
    return verdicts


def count_verdicts(verdicts: NDArray[np.uint8]) -> Mapping[str, float]:
    """The share of candidates with each verdict, by its name in lower case."""
    counts = np.bincount(verdicts.ravel(), minlength=len(Verdict))
    return {v.name.lower(): counts[v] / max(1, verdicts.size) for v in Verdict}


def _take_next(candidates: Candidates, verdicts: NDArray[np.uint8], way: int, limit: float) -> None:
    """Takes every query's best spare candidate of a way, if there is one, and refuses its like."""
    spare = verdicts[:, way] == Verdict.SPARE
    query, column = np.arange(len(spare)), spare.argmax(axis=1)
    found = spare[query, column]  # where nothing is spare, the first column says so
    row = candidates.rows[query, way, column]
    likeness = np.einsum("qwce,qe->qwc", candidates.vectors, candidates.vectors[query, way, column])
    # The same row again is refused even where max_similarity=1 allows copies.
    alike = (likeness > limit) | (candidates.rows == row[:, None, None])
    alike &= (verdicts == Verdict.SPARE) & found[:, None, None]
    verdicts[alike] = Verdict.DIVERSITY
    verdicts[query[found], way, column[found]] = Verdict.TAKEN


def _limit(cosine: float) -> float:
    """1 refuses nothing: products of rounded unit vectors are a little above or below it."""
    return np.inf if cosine == 1 else cosine
