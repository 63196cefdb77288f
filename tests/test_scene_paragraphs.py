"""Sentences about scenes: all that are told are true, and with another answer none is."""

import numpy as np
import pytest

from cm3leon_jax.data.scene_paragraphs import SENTENCES, all_true, is_true, paragraph, state
from cm3leon_jax.data.scene_text import NUMBERS, questions
from cm3leon_jax.data.scenes import (
    BACKGROUNDS,
    COLOURS,
    LETTERS,
    PLACES,
    SHAPES,
    SIZES,
    Object,
    Scene,
    noun,
    sample_scenes,
)

SCENE = Scene(
    (
        Object("circle", "red", "small", 0),
        Object("circle", "blue", "large", 1),
        Object("ring", "red", "small", 3),
    ),
    "white",
)


@pytest.mark.parametrize("sentence", [
    "the background is white", "there are three objects", "there are two red objects",
    "there is one blue object", "there are zero pink objects", "there is a red circle",
    "there is no blue ring", "there is no orange square", "the ring is red",
    "the ring is bottom right", "the blue object is a circle", "the circle top left is small",
    "the large object is blue", "the object bottom right is a ring", "The ring is red",
])  # fmt: skip
def test_what_is_so_is_true(sentence: str) -> None:
    assert is_true(sentence, SCENE)


@pytest.mark.parametrize("sentence", [
    "the background is black", "there are two objects", "there is one red object",
    "there are two blue objects", "there is a red square", "there is no red circle",
    "there is an orange circle", "the ring is blue", "the ring is top right",
    "the circle is red", "the red object is a ring", "the square is red", "the ring is",
    "the ring is nice", "a ring is red", "", "there is a ring", "there are objects",
    "there are zero nice objects", "there is no nice ring", "there is no red thing",
    "the nice ring is red", "the ring is nice red", "the ring is is red", "the ring is red or blue",
])  # fmt: skip
def test_what_is_not_so_or_says_nothing_is_not(sentence: str) -> None:
    """Of two circles neither is 'the circle'."""
    assert not is_true(sentence, SCENE)


@pytest.mark.parametrize(("grid", "letters"), [(2, False), (2, True), (3, False), (3, True)])
def test_a_paragraph_is_true_of_its_scene(grid: int, letters: bool) -> None:
    for number, scene in enumerate(sample_scenes(200, 5, grid, letters)):
        text = paragraph(scene, np.random.default_rng(number))
        sentences = text.removesuffix(".").split(". ")
        assert 4 <= len(set(sentences)) == len(sentences) <= SENTENCES
        assert text.endswith(".")
        assert all_true(text, scene)
        assert not all_true(f"{text} the background is pink.", scene)


def test_an_answer_makes_a_true_sentence_and_any_other_one_a_false_one() -> None:
    nouns = tuple(noun(shape) for shape in SHAPES + LETTERS)
    of_words = {"colour": (*COLOURS,), "shape": nouns, "size": (*SIZES,)}
    for number, scene in enumerate(sample_scenes(200, 6)):
        for asked, answer in questions(scene, np.random.default_rng(number)):
            kind = asked.split()[1] if asked.startswith("what") else asked.split()[0]
            kinds = of_words | {"where": PLACES[2], "is": ("yes", "no"), "how": NUMBERS}
            values = BACKGROUNDS if "background" in asked else kinds[kind]
            true = [value for value in values if is_true(state(asked, value), scene)]
            assert true == [answer], asked


def test_other_questions_cannot_be_stated() -> None:
    with pytest.raises(ValueError, match=r"question='why\?': scenes are not asked this"):
        state("why?", "so")
