"""Paragraphs about a scene: sentences in any order, each of which is true or not.

    the circle is red. there are two objects. the blue object is top left. there is no pink ring.

They say what `scene_text.questions` asks, so that a model learns from one picture to find many an
object by what is said of it; a caption goes through the objects in their order.
"""

from itertools import product

import numpy as np

from cm3leon_jax.data.scene_text import NUMBERS, questions
from cm3leon_jax.data.scenes import COLOURS, LETTERS, SHAPES, Object, Scene, noun

SENTENCES = 8  # of a paragraph at most
DRAWS = 2  # of questions, of which it is made
NOUNS = frozenset(noun(shape).lower() for shape in SHAPES + LETTERS)


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
    """Whether a sentence of a form of `state` is true; 'the' needs a single object."""
    match sentence.lower().split():
        case ["the", "background", "is", colour]:
            return colour == scene.background
        case ["there", "is" | "are", number, "object" | "objects"]:
            return number == NUMBERS[len(scene.objects)]
        case ["there", "is" | "are", number, colour, "object" | "objects"]:
            same = sum(o.colour == colour for o in scene.objects)
            return colour in COLOURS and number == NUMBERS[same]
        case ["there", "is", "a" | "an" | "no" as article, colour, *shape]:
            if colour not in COLOURS or " ".join(shape) not in NOUNS:
                return False
            there = any([o.colour, *_noun(o).split()] == [colour, *shape] for o in scene.objects)
            return there == (article != "no")
        case ["the", *words] if "is" in words:
            at = words.index("is")
            named = [o for o in scene.objects if " ".join(words[:at]) in _names(scene, o)]
            said = " ".join(words[at + 1 :])
            so = [said in (o.colour, f"a {_noun(o)}", o.size, scene.place(o)) for o in named]
            return so == [True]
    return False


def _names(scene: Scene, o: Object) -> set[str]:
    """All that an object may be called."""
    parts = ("", o.size), ("", o.colour), ("object", _noun(o)), ("", scene.place(o))
    return {" ".join(filter(None, words)) for words in product(*parts)}


def _noun(o: Object) -> str:
    return noun(o.shape).lower()
