"""VQA accuracy against the official script; choices and the ranking of VisDial by hand."""

import json

import numpy as np
import pytest
from metric_oracles import GOLDEN, make_answers

from cm3leon_jax.evaluation.vqa import (
    exact_accuracy,
    ndcg,
    normalise,
    rank,
    rank_scores,
    read_choice,
    vqa_accuracy,
)

GIVEN = json.loads((GOLDEN / "texts.json").read_text(encoding="utf-8"))["vqa"]


def test_answers_are_normalised_as_by_the_official_script():
    assert [normalise(text) for text in GIVEN["texts"]] == GIVEN["normal"]


def test_accuracies_are_those_of_the_official_script():
    found = [100 * vqa_accuracy(answer, people) for answer, people in make_answers()]
    np.testing.assert_allclose(found, GIVEN["accuracies"], atol=1e-8)
    assert len(set(GIVEN["accuracies"])) > 4


def test_the_published_rule_holds_three_people_make_an_answer_right():
    people = ["blue"] * 3 + ["red"] * 7
    assert vqa_accuracy("blue", people) == pytest.approx(0.9)  # (3 * 2/3 + 7 * 1) / 10
    assert vqa_accuracy("The red.", people) == 1
    assert vqa_accuracy("", people) == 0


def test_a_single_opinion_is_no_vqa_accuracy():
    with pytest.raises(ValueError, match=r"answers=.*2 people or more"):
        vqa_accuracy("blue", ["blue"])
    assert exact_accuracy("Two.", ["2"]) == 1
    assert exact_accuracy("three", ["2"]) == 0


@pytest.mark.parametrize(
    ("answer", "choice"),
    [
        ("a blue ring", 1),
        ("Blue ring.", 1),
        ("(B)", 1),
        ("The answer is C.", 2),
        ("it must be the ring", 0),
        ("it must be the blue ring", 1),
        ("a ring or a square", None),
        ("d", None),
        ("", None),
    ],
)
def test_an_answer_names_a_choice_by_letter_or_text(answer, choice):
    assert read_choice(answer, ["ring", "blue ring", "square"]) == choice


def test_choices_that_are_letters_are_told_apart_from_no_answer():
    assert read_choice("A", ["A", "B"]) == 0
    assert read_choice("", ["A", "B"]) is None


def test_visdial_ranks_give_the_gain_computed_by_hand():
    scores = np.array([[-1.0, -3.0, -2.0, -4.0], [-4.0, -1.0, -2.0, -3.0]])
    relevance = np.array([[0.5, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    np.testing.assert_array_equal(rank(scores), [[1, 3, 2, 4], [4, 1, 2, 3]])
    first = 0.5 / (1 + 0.5 / np.log2(3))  # of two relevant ones the second came third: cut off
    assert ndcg(scores, relevance) == pytest.approx((first + 1) / 2)
    found = rank_scores(scores, np.array([1, 1]))
    assert found == {
        "mean_rank": 2.0,
        "mrr": pytest.approx((1 / 3 + 1) / 2),
        "recall_1": 0.5,
        "recall_5": 1.0,
        "recall_10": 1.0,
    }
    with pytest.raises(ValueError, match=r"relevance=0.0"):
        ndcg(scores, 0 * relevance)
