"""Every rule of the strategy by itself, and all of them against a choice made one by one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3leon_jax import config
from cm3leon_jax.retrieval.strategy import (
    NEIGHBOUR,
    Candidates,
    Verdict,
    choose,
    count_verdicts,
    judge,
)

WIDTH = 8
ALL = config.Retrieval(most=2, by_text=2, by_image=2, candidates=6, max_score=1, max_similarity=1)
E = np.eye(WIDTH, dtype=np.float32)


def rules(**changes: object) -> config.Retrieval:
    return config.Retrieval(**{**ALL.__dict__, **changes})


def found(
    by_text: list[int], by_image: list[int], vectors: np.ndarray = E, scores: list | None = None
) -> Candidates:
    """Candidates of one query, by rows of `vectors`; scores fall from 0.5 unless they are given."""
    rows = np.array([[by_text, by_image]])
    falling = 0.5 - 0.01 * np.arange(rows.shape[2])
    values = np.broadcast_to(falling, rows.shape) if scores is None else np.array([scores])
    return Candidates(rows, values.astype(np.float32), vectors[rows], np.ones(rows.shape, np.bool_))


def chosen(candidates: Candidates, r: config.Retrieval, **own: np.ndarray) -> list[int]:
    return choose(candidates, r, **own)["row"][0].tolist()


def verdict(candidates: Candidates, r: config.Retrieval, **own: np.ndarray) -> list[str]:
    """On the candidates found by text."""
    return [Verdict(v).name for v in judge(candidates, r, **own)[0, 0]]


def test_best_of_each_way_are_taken_in_order_of_score():
    result = choose(found([0, 1, 2], [3, 4, 5]), ALL)
    assert result.dtype == NEIGHBOUR
    assert result["row"].tolist() == [[0, 1, 3, 4]]
    assert result["by"].tolist() == [[0, 0, 1, 1]]
    np.testing.assert_allclose(result["score"], [[0.5, 0.49, 0.5, 0.49]], atol=1e-3)


def test_where_fewer_survive_the_row_is_minus_one_behind_those_that_do():
    result = choose(found([7, -1, -1], [-1, -1, -1]), ALL)
    assert result["row"].tolist() == [[7, -1, -1, -1]]
    assert np.isneginf(result["score"][0, 1:]).all()
    assert result["by"].tolist() == [[0, 0, 1, 1]]


def test_relevance_skips_what_matches_the_query_too_well():
    scores = [[0.95, 0.91, 0.9, 0.2], [0.99, 0.3, 0.2, 0.1]]
    candidates = found([0, 1, 2, 3], [4, 5, 6, 7], scores=scores)
    assert chosen(candidates, rules(max_score=0.9)) == [2, 3, 5, 6]
    assert verdict(candidates, rules(max_score=0.9))[:2] == ["RELEVANCE"] * 2


def test_relevance_skips_the_document_itself():
    candidates = found([3, 1, 2], [1, 3, 5])
    assert chosen(candidates, ALL, own=np.array([3])) == [1, 2, 5, -1]
    assert verdict(candidates, ALL, own=np.array([3])) == ["ITSELF", "TAKEN", "TAKEN"]


def test_relevance_skips_planted_duplicates_of_the_document():
    vectors = E.copy()
    vectors[1] = vectors[0]  # an exact copy of the document's own row 0
    vectors[2] = [0.95, np.sqrt(1 - 0.95**2), 0, 0, 0, 0, 0, 0]  # and a near one
    candidates = found([0, 1, 2, 3], [1, 4, 2, 5], vectors)
    own = {"own": np.array([0]), "document": vectors[:1]}
    assert chosen(candidates, rules(max_similarity=0.9), **own) == [3, -1, 4, 5]
    names = verdict(candidates, rules(max_similarity=0.9), **own)
    assert names == ["ITSELF", "COPY", "COPY", "TAKEN"]


def test_copies_are_skipped_for_a_document_outside_the_memory():
    candidates = found([0, 1], [2, 3])
    assert chosen(candidates, rules(max_similarity=0.9), document=E[:1]) == [1, -1, 2, 3]


def test_modality_takes_only_documents_with_text_and_image():
    candidates = found([0, 1, 2], [3, 4, 5])
    candidates.complete[0, :, 0] = False
    assert chosen(candidates, ALL) == [1, 2, 4, 5]
    assert verdict(candidates, ALL) == ["MODALITY", "TAKEN", "TAKEN"]


def test_diversity_skips_what_is_like_one_already_taken_by_either_way():
    vectors = E.copy()
    vectors[1] = vectors[4] = [0.95, 0, 0, 0, 0, 0, 0, np.sqrt(1 - 0.95**2)]  # near row 0
    candidates = found([0, 1, 2, 3], [4, 5, 2, 6], vectors)
    assert chosen(candidates, rules(max_similarity=0.9)) == [0, 2, 5, 6]
    names = verdict(candidates, rules(max_similarity=0.9))
    assert names == ["TAKEN", "DIVERSITY", "TAKEN", "SPARE"]


def test_a_row_is_never_taken_twice_even_where_copies_are_allowed():
    copies = np.ones((WIDTH, WIDTH), np.float32) / np.sqrt(WIDTH)
    assert chosen(found([0, 1, 2], [1, 0, 3], copies), ALL) == [0, 1, 3, -1]


@pytest.mark.parametrize(("by_text", "by_image", "wanted"), [(3, 0, [0, 1, 2]), (0, 1, [3])])
def test_one_way_alone_serves_a_prompt_of_one_kind(by_text, by_image, wanted):
    r = rules(most=1, by_text=by_text, by_image=by_image)
    assert chosen(found([0, 1, 2], [3, 4, 5]), r) == wanted


def test_verdicts_are_counted_as_shares():
    shares = count_verdicts(judge(found([0, 1, -1], [0, -1, -1]), ALL))
    assert shares["taken"] == pytest.approx(2 / 6)
    assert shares["nothing"] == pytest.approx(3 / 6)
    assert shares["diversity"] == pytest.approx(1 / 6)
    assert sum(shares.values()) == pytest.approx(1)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Candidates, config.Retrieval, np.ndarray, np.ndarray]:
    """Random candidates of four queries among twelve documents, a third of them near copies."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    vectors = rng.standard_normal((12, WIDTH)).astype(np.float32)
    vectors[8:] = vectors[:4] + 0.2 * vectors[4:8]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    shape = (4, 2, 6)
    rows = np.stack([rng.permutation(12)[:6] for _ in range(8)]).reshape(shape)
    rows[rng.random(shape) < 0.1] = -1
    scores = np.sort(rng.uniform(0, 1, shape))[..., ::-1].astype(np.float32)
    complete = (rng.random(12) < 0.8)[rows]
    own = rng.integers(0, 12, 4)
    r = rules(
        by_text=draw(st.integers(0, 3)),
        by_image=draw(st.integers(2, 3)),
        max_score=draw(st.sampled_from([0.5, 0.9, 1])),
        max_similarity=draw(st.sampled_from([0.3, 0.9, 1])),
    )
    return Candidates(rows, scores, vectors[rows], complete), r, own, vectors[own]


@given(problem=problems())
@settings(max_examples=200, deadline=None)
def test_choice_for_all_queries_equals_a_choice_one_by_one(problem):
    """The rules again, in the words of the paper, for one candidate after the other."""
    candidates, r, own, documents = problem
    result = choose(candidates, r, own, documents)
    for q, document in enumerate(documents):
        wanted, taken = [], []
        for way, count in ((0, r.by_text), (1, r.by_image)):
            mine: list[int] = []
            for c in range(6):
                row, vector = candidates.rows[q, way, c], candidates.vectors[q, way, c]
                alike = [float(vector @ other) for other in (document, *(v for _, v in taken))]
                if (
                    len(mine) < count
                    and row >= 0
                    and row not in (own[q], *(n for n, _ in taken))
                    and (r.max_score == 1 or candidates.scores[q, way, c] <= r.max_score)
                    and candidates.complete[q, way, c]
                    and (r.max_similarity == 1 or max(alike) <= r.max_similarity)
                ):
                    mine.append(row)
                    taken.append((row, vector))
            wanted += mine + [-1] * (count - len(mine))
        assert result["row"][q].tolist() == wanted
