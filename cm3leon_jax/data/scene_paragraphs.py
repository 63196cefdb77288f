"""Paragraphs about a scene: sentences in any order, each of which is true or not.

    the circle is red. there are two objects. the blue object is top left. there is no pink ring.

They say what `scene_text.questions` asks, so that a model learns from one picture to find many an
object by what is said of it; a caption goes through the objects in their order.
"""

import re

import numpy as np

from cm3leon_jax.data.scene_text import NUMBERS, Phrase, questions, scan_phrase
from cm3leon_jax.data.scenes import Object, Scene

SENTENCES = 8  # of a paragraph at most
DRAWS = 2  # of questions, of which it is made


def paragraph(scene: Scene, rng: np.random.Generator) -> str:
    """Up to SENTENCES different true sentences in a random order."""
    told = {state(*asked) for _ in range(DRAWS) for asked in questions(scene, rng)}
    return " ".join(f"{sentence}." for sentence in rng.permutation(sorted(told))[:SENTENCES])


def state(question: str, answer: str) -> str:
    """A question of `scene_text.questions` and its answer in one sentence: 'the circle is red'."""
    match question.removesuffix("?").split():
        case ["how", "many", *things, "are", "there"]:
            is_one = answer == "one"
            what = " ".join(things).removesuffix("s" if is_one else "")
            return f"there {'is' if is_one else 'are'} {answer} {what}"
        case ["is", "there", article, *thing]:
            return " ".join(("there", "is", article if answer == "yes" else "no", *thing))
        case ["what", "shape", "is", *name]:
            return " ".join((*name, "is", "a", answer))
        case ["what", _, "is", *name] | ["where", "is", *name]:
            return " ".join((*name, "is", answer))
    raise ValueError(f"question={question!r}: scenes are not asked this")


def all_true(text: str, scene: Scene) -> bool:
    """Whether a text is sentences, and every one is true of a scene."""
    return all(is_true(sentence, scene) for sentence in text.strip().removesuffix(".").split(". "))


def is_true(sentence: str, scene: Scene) -> bool:
    """Whether a sentence says something of a scene, and that is so; 'the' needs a single object."""
    sentence = sentence.lower()
    if found := re.fullmatch(r"the background is (\w+)", sentence):
        return found[1] == scene.background
    if found := re.fullmatch(r"there (?:is|are) (\w+)( \w+)? objects?", sentence):
        colour = (found[2] or "").strip()
        count = sum(colour in ("", o.colour) for o in scene.objects)
        return found[1] == NUMBERS[count]
    if found := re.fullmatch(r"there is (an?|no) (\w+) ([\w ]+)", sentence):
        thing = scan_phrase(f"{found[2]} {found[3]}", scene.grid)
        there = any(_fits(thing, o) for o in scene.objects)
        return None not in (thing.colour, thing.shape) and there != (found[1] == "no")
    if found := re.fullmatch(r"the (.+) is (.+)", sentence):
        name, said = (scan_phrase(part, scene.grid) for part in found.groups())
        named = [o for o in scene.objects if _fits(name, o)]
        says = any(word is not None for word in said)
        return len(named) == 1 and says and _fits(said, named[0])
    return False


def _fits(phrase: Phrase, o: Object) -> bool:
    """Whether all that a phrase says is so of an object."""
    told = (o.shape, o.colour, o.size, o.cell)
    return all(said in (None, own) for said, own in zip(phrase, told, strict=True))
