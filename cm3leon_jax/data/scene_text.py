"""What is said about a scene: captions and their inverse, questions, edits.

The canonical caption names the objects in raster order and then the background:

    a small red circle top left and a large blue square bottom right on white
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from cm3leon_jax.data.scenes import (
    BACKGROUNDS,
    COLOURS,
    MAX_OBJECTS,
    PLACES,
    SHAPES,
    SIZES,
    Object,
    Scene,
    noun,
    pick,
)

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

_VARIANTS = ((r"^(?:a picture of|there is) ", ""), (r" at the ", " "), (r" background$", ""))


class Phrase(NamedTuple):
    """What a caption says of one object; None where it does not say, or not in known words."""

    shape: str | None
    colour: str | None
    size: str | None
    cell: int | None


def caption(scene: Scene, rng: np.random.Generator | None = None) -> str:
    """Describe a scene completely; with `rng` in one of several wordings, else canonically."""
    lead, at, on, end = "", "", "on", ""
    if rng is not None:
        lead = ("", "a picture of ", "there is ")[int(rng.integers(3))]
        at = ("", "at the ")[int(rng.integers(2))]
        on, end = (("on", ""), ("on a", " background"))[int(rng.integers(2))]
    objects = [f"a {o.size} {o.colour} {noun(o.shape)} {at}{scene.place(o)}" for o in scene.objects]
    return f"{lead}{_join(objects) or 'nothing'} {on} {scene.background}{end}"


def outline(scene: Scene) -> str:
    """What is there in which colour, in raster order; neither where nor how large."""
    objects = _join([f"a {o.colour} {noun(o.shape)}" for o in scene.objects])
    return f"{objects or 'nothing'} on {scene.background}"


def parse_caption(text: str, grid: int = 2) -> Scene | None:
    """The scene that a caption describes, or None unless it is a whole and well-formed caption.

    Accepts exactly what `caption` writes, canonical or varied, whatever the case and spacing.
    """
    text = _canonical(text)
    phrases, background = scan_caption(text, grid)
    objects = {p.cell: Object(*p) for p in phrases if None not in p}  # type: ignore[arg-type]
    if background is None:
        return None
    scene = Scene(tuple(objects.values()), background, grid)
    return scene if caption(scene).lower() == text else None


def scan_caption(text: str, grid: int = 2) -> tuple[list[Phrase], str | None]:
    """All that a possibly broken caption says: its objects in order, and the background or None."""
    *clauses, last = re.split(r"\bon\b", _canonical(text))
    background = last.strip() if clauses and last.strip() in BACKGROUNDS else None
    if background is None:
        clauses.append(last)
    phrases = [_scan_phrase(part, grid) for part in re.split(r",|\band\b", " and ".join(clauses))]
    return [p for p in phrases if any(word is not None for word in p)], background


def refer(scene: Scene, o: Object, hide: str = "") -> str | None:
    """The shortest name that fits this object alone, without saying `hide`: 'the red circle'.

    `hide` is 'shape', 'colour', 'size' or 'place'. None if all names fit another object too.
    """
    orders = ("shape", "colour shape", "size shape", "size colour shape", "shape place")
    for kinds in map(str.split, orders):
        if hide in kinds and hide != "shape":
            continue
        names = [
            " ".join(_word(scene, other, kind, hide) for kind in kinds) for other in scene.objects
        ]
        name = names[scene.objects.index(o)]
        if names.count(name) == 1:
            return f"the {name}"
    return None


def questions(scene: Scene, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Questions with their answers, one of each kind that can be asked of this scene.

    Kinds, in this order: background, number of objects, number of one colour, is there (yes and no
    equally often), and of one object its colour, shape, size and place.
    """
    colours = tuple(COLOURS)
    asked = pick(rng, [o.colour for o in scene.objects] or colours)
    if rng.random() < 0.5:
        asked = pick(rng, colours)
    same = sum(o.colour == asked for o in scene.objects)
    kinds = {(o.colour, o.shape) for o in scene.objects}
    absent = [(c, s) for c in colours for s in SHAPES if (c, s) not in kinds]
    colour, shape = pick(rng, sorted(kinds) if kinds and rng.random() < 0.5 else absent)
    article = "an" if colour == "orange" else "a"
    asks = [
        ("what colour is the background?", scene.background),
        ("how many objects are there?", NUMBERS[len(scene.objects)]),
        (f"how many {asked} objects are there?", NUMBERS[same]),
        (
            f"is there {article} {colour} {noun(shape)}?",
            "yes" if (colour, shape) in kinds else "no",
        ),
    ]
    if scene.objects:
        o = pick(rng, scene.objects)
        asks += [
            (f"what colour is {refer(scene, o, hide='colour')}?", o.colour),
            (f"what shape is {refer(scene, o, hide='shape')}?", noun(o.shape)),
            (f"what size is {refer(scene, o, hide='size')}?", o.size),
        ]
        if name := refer(scene, o, hide="place"):
            asks.append((f"where is {name}?", scene.place(o)))
    return asks


def edit(scene: Scene, rng: np.random.Generator) -> tuple[str, Scene]:
    """An instruction that changes one thing, and the scene after it."""
    free = [c for c in range(scene.grid**2) if c not in {o.cell for o in scene.objects}]
    changes = ["background"]
    if scene.objects:
        changes += ["colour", "size", "shape"] + ["move"] * bool(free)
    if len(scene.objects) > 1:
        changes.append("remove")
    if len(scene.objects) < MAX_OBJECTS and free:
        changes.append("add")
    change = pick(rng, changes)
    if change == "background":
        ground = _other(rng, BACKGROUNDS, scene.background)
        return f"make the background {ground}", replace(scene, background=ground)
    if change == "add":
        o = Object(pick(rng, SHAPES), pick(rng, [*COLOURS]), pick(rng, [*SIZES]), pick(rng, free))
        after = replace(scene, objects=(*scene.objects, o))
        return f"add a {o.size} {o.colour} {o.shape} {after.place(o)}", after

    o = pick(rng, scene.objects)
    name, rest = refer(scene, o), tuple(other for other in scene.objects if other != o)
    match change:
        case "remove":
            return f"remove {name}", replace(scene, objects=rest)
        case "move":
            new = replace(o, cell=pick(rng, free))
            instruction = f"move {name} to the {scene.place(new)}"
        case "colour":
            new = replace(o, colour=_other(rng, COLOURS, o.colour))
            instruction = f"make {name} {new.colour}"
        case "size":
            new = replace(o, size=_other(rng, SIZES, o.size))
            instruction = f"make {name} {new.size}"
        case _:
            new = replace(o, shape=_other(rng, SHAPES, o.shape))
            instruction = f"turn {name} into a {new.shape}"
    return instruction, replace(scene, objects=(*rest, new))


def _canonical(text: str) -> str:
    """Lower case, single spaces, and the varied wordings of `caption` put back."""
    text = " ".join(text.lower().split()).removesuffix(".")
    for pattern, instead in _VARIANTS:
        text = re.sub(pattern, instead, text)
    return re.sub(r" on a (\w+)$", r" on \1", text)


def _scan_phrase(text: str, grid: int) -> Phrase:
    """Reads one clause such as 'a small red circle top left'; unknown words are passed over."""
    letter = re.search(r"\bletter ([a-z])\b", text)
    shape = letter[1].upper() if letter else _find(SHAPES, text)
    place = _find(PLACES[grid], text)
    cell = None if place is None else PLACES[grid].index(place)
    return Phrase(shape, _find(COLOURS, text), _find(SIZES, text), cell)


def _find(words: Iterable[str], text: str) -> str | None:
    """The longest of `words` that stands in the text, the earliest of equally long ones."""
    found = [w for w in words if re.search(rf"\b{w}\b", text)]
    return max(found, key=lambda w: (len(w), -text.index(w)), default=None)


def _word(scene: Scene, o: Object, kind: str, hide: str) -> str:
    if kind == hide:
        return "object"
    return {
        "shape": noun(o.shape),
        "colour": o.colour,
        "size": o.size,
        "place": scene.place(o),
    }[kind]


def _other(rng: np.random.Generator, words: Iterable[str], current: str) -> str:
    return pick(rng, [word for word in words if word != current])


def _join(words: list[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))
