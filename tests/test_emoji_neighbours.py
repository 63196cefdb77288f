"""Neighbours among real pictures with real names: every rule holds for every document."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cm3leon_jax import config
from cm3leon_jax.data import emoji
from cm3leon_jax.mapped import Mapped, finish_mapped, write_mapped_part
from cm3leon_jax.retrieval.index import Kind, build_faiss
from cm3leon_jax.retrieval.join import join
from cm3leon_jax.retrieval.memory import Documents, Memory

RULES = config.Retrieval(
    least=1, most=3, candidates=32, max_score=0.66, max_similarity=0.9, query_dropout=0.0
)
COPIES, WORDLESS = 20, 10
WIDTH = 64  # of the words, and of the pixels


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-9)


@pytest.fixture(scope="module")
def vectors(font: Path) -> np.ndarray:
    """[N 3 E] of emoji: words by their hash, pictures by their pixels; copies planted at the end,
    then documents without a text."""
    records = list(emoji.records(8, font))[::5]
    words = np.zeros((len(records), WIDTH))
    for row, record in zip(words, records):
        for word, count in Counter(record.segments[0].split()).items():
            row[sum(word.encode()) % WIDTH] += count
    pixels = np.stack([255.0 - r.segments[1].mean(axis=2).ravel() for r in records])
    text, image = np.zeros((2, len(records), 2 * WIDTH))
    text[:, :WIDTH], image[:, WIDTH:] = unit(words), unit(pixels - pixels.mean(axis=0))
    both = np.stack([unit(text + image), text, image], axis=1)
    wordless = both[:WORDLESS].copy()
    wordless[:, 1], wordless[:, 0] = 0, wordless[:, 2]
    return np.concatenate([both, both[:COPIES], wordless]).astype(np.float16)


@pytest.fixture(scope="module")
def neighbours(vectors, tmp_path_factory) -> np.ndarray:
    folder = tmp_path_factory.mktemp("emoji")
    write_mapped_part(folder, "vectors", 0, 1, vectors)
    finish_mapped(folder, "vectors", 1, {"retriever": "by hand"})
    queries = Mapped(folder, "vectors")
    memory = Memory(queries, build_faiss(Documents(queries), Kind()))
    return join(queries, memory, RULES, folder, "found", same=True)[:]


def test_most_documents_have_neighbours(neighbours):
    counts = (neighbours["row"] >= 0).sum(axis=1)
    assert (counts >= 2).mean() > 0.8
    assert counts.max() == RULES.by_text + RULES.by_image


def test_every_neighbour_obeys_every_rule(vectors, neighbours):
    exact = vectors.astype(np.float64)
    for row, some in enumerate(neighbours):
        taken = [row]
        for neighbour, score, by in sorted(some[some["row"] >= 0].tolist(), key=lambda n: n[2]):
            query = exact[row, 1 + by]
            assert score == pytest.approx(query @ exact[neighbour, 0], abs=2e-3)
            assert score <= RULES.max_score + 1e-3
            assert exact[neighbour, 1].any()
            assert exact[neighbour, 2].any()
            likeness = exact[taken, 0] @ exact[neighbour, 0]
            assert likeness.max() <= RULES.max_similarity + 1e-3
            taken.append(neighbour)
        for by, most in ((0, RULES.by_text), (1, RULES.by_image)):
            found = some[(some["row"] >= 0) & (some["by"] == by)]
            assert len(found) <= most
            assert np.all(np.diff(found["score"]) <= 0)


def test_planted_copies_are_never_neighbours(vectors, neighbours):
    first = len(vectors) - COPIES - WORDLESS
    for i in range(COPIES):
        assert first + i not in neighbours[i]["row"]
        assert i not in neighbours[first + i]["row"]
        # One copy of any other document is enough.
    for some in neighbours["row"]:
        originals = {row - first if row >= first else row for row in some.tolist() if row >= 0}
        assert len(originals) == (some >= 0).sum()


def test_documents_without_a_text_are_asked_for_by_image_only(vectors, neighbours):
    lone = neighbours[len(vectors) - WORDLESS :]
    assert set(lone["by"][lone["row"] >= 0].tolist()) <= {1}
    assert not np.isin(neighbours["row"], range(len(vectors) - WORDLESS, len(vectors))).any()
