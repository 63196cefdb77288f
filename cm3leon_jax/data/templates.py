"""Templates: the ways to tell a record as a document, each a pure function of the record.

A way is the document's parts in order: texts as strings, or as `Filled` where the answer in it is
known, and images as codes. Training draws one of the ways anew in every epoch, preparation makes
sure that the longest fits. A record that lacks what a template needs raises ValueError. The
wordings are those of the paper's table 5 (`tokens.wording`).
"""

from collections.abc import Callable
from functools import cache, partial
from itertools import combinations, product
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from cm3leon_jax.data.records import picture_of
from cm3leon_jax.data.shards import CodedRecord
from cm3leon_jax.tokens import wording
from cm3leon_jax.tokens.wording import Filled

WORDS = 6  # of an answer inside a caption at most
SPANS = 16  # of an image's answer at most: as many as the paper's objective masks


class Cut(NamedTuple):
    """An image's codes, and the [start, stop) in them that are the answer."""

    codes: NDArray[np.integer]
    answers: list[tuple[int, int]]


Parts = tuple[str | Filled | NDArray[np.integer] | Cut, ...]
Template = Callable[[CodedRecord], list[Parts]]
T = TypeVar("T")


def plain(record: CodedRecord) -> list[Parts]:
    """The segments as they were read: for pairs the caption, then its image."""
    return [record.segments]


def image_first(record: CodedRecord) -> list[Parts]:
    """The images, then the texts: a model that is cut off behind the images learns to caption."""
    return [(*record.images, *record.texts)]


def infill(record: CodedRecord) -> list[Parts]:
    """A caption and its picture, and of one of them a part is the answer: some words, or a
    rectangle whose edges lie on quarters of the picture (a band of rows where it is as wide)."""
    image, ways = _picture(record), list[Parts]()
    for text in _texts(record):
        words = text.split()
        for start in range(len(words)):
            for stop in range(start + 1, min(start + WORDS, len(words)) + 1):
                before, inside, behind = words[:start], words[start:stop], words[stop:]
                frame = " ".join(before), "".join(f" {word}" for word in behind)
                ways.append((Filled(frame, (" ".join(inside),)), image))
        ways += [(text, Cut(image, spans)) for spans in _rectangles(len(image))]
    return ways


def edit(record: CodedRecord) -> list[Parts]:
    """The picture before, the instruction, the picture after."""
    before, after = _images(record, 2)
    return [(wording.EDIT, before, _need(record, "instruction", record.instruction), after)]


def structure(kind: str, record: CodedRecord) -> list[Parts]:
    """A map of a kind of `wording.STRUCTURES`, the caption, and the picture; records have the map
    in front of the picture."""
    map_image, image = _images(record, 2)
    return [(wording.structure(kind), map_image, text, image) for text in _texts(record)]


def map_of(kind: str, record: CodedRecord) -> list[Parts]:
    """The inverse of `structure`: the picture, then its map."""
    map_image, image = _images(record, 2)
    return [(wording.inverse(kind), image, map_image)]


def boxes(record: CodedRecord) -> list[Parts]:
    """The caption with the place of each object, and the picture."""
    image, places = _picture(record), _boxes(record)
    return [(wording.boxes(text, places), image) for text in _texts(record)]


def grounded(record: CodedRecord) -> list[Parts]:
    """The inverse of `boxes`: caption and places are the answer."""
    image, places = _picture(record), wording.places(_boxes(record))
    answers = [f"{text} with segmentations {places}" for text in _texts(record)]
    (frame,) = wording.CAPTIONS["grounded"]
    return [(Filled(frame, (answer,)), image) for answer in answers]


def write(record: CodedRecord) -> list[Parts]:
    """A picture with the record's text in it."""
    image = _picture(record)
    return [(wording.write(text), image) for text in _texts(record)]


def caption(style: str, record: CodedRecord) -> list[Parts]:
    """The picture's texts as answers, in the wordings of a style of `wording.CAPTIONS`."""
    image, frames = _picture(record), wording.CAPTIONS[style]
    return [(Filled(frame, (text,)), image) for text in _texts(record) for frame in frames]


def question(record: CodedRecord) -> list[Parts]:
    """The question with its answer, and the picture."""
    image, asked = _picture(record), _need(record, "question", record.question)
    answer = (_need(record, "answer", record.answer),)
    return [(Filled(frame, answer), image) for frame in wording.questions(asked)]


def choice(record: CodedRecord) -> list[Parts]:
    """A question with its options, alone and, where a text explains the answer, with it."""
    image, asked = _picture(record), _need(record, "question", record.question)
    answer = _need(record, "answer", record.answer)
    ways = [Filled(wording.choice(asked), (answer,))]
    frame = wording.explained_question(asked)
    ways += [Filled(frame, (text, answer)) for text in record.texts]
    return [(way, image) for way in ways]


TEMPLATES: dict[str, Template] = {
    "plain": plain,
    "image_first": image_first,
    "infill": infill,
    "edit": edit,
    **{kind: partial(structure, kind) for kind in wording.STRUCTURES},
    **{f"{kind}_of": partial(map_of, kind) for kind in wording.STRUCTURES},
    "boxes": boxes,
    "grounded": grounded,
    "write": write,
    "short": partial(caption, "short"),
    "long": partial(caption, "long"),
    "narration": partial(caption, "narration"),
    "question": question,
    "choice": choice,
}


@cache
def _rectangles(codes: int) -> list[list[tuple[int, int]]]:
    """The spans of every rectangle on quarters of a square raster that has at most SPANS."""
    side = round(codes**0.5)
    edges = sorted({round(side * quarter / 4) for quarter in range(5)})
    sides = list(combinations(edges, 2))
    found = []
    for (top, bottom), (left, right) in product(sides, sides):
        if right - left == side:
            found.append([(top * side, bottom * side)])
        elif bottom - top <= SPANS:
            rows = range(top * side, bottom * side, side)
            found.append([(row + left, row + right) for row in rows])
    return found


def _images(record: CodedRecord, count: int) -> list[NDArray[np.int32]]:
    if len(record.images) < count:
        raise ValueError(f"record {record.id!r}: {len(record.images)} images, {count} are needed")
    return record.images[:count]


def _picture(record: CodedRecord) -> NDArray[np.int32]:
    _images(record, 1)
    return picture_of(record.segments)


def _texts(record: CodedRecord) -> list[str]:
    return _need(record, "text", record.texts)


def _boxes(record: CodedRecord) -> list[tuple[str, wording.Box]]:
    """Boxes in whole pixels of the image tokenizer's square."""
    found = []
    for label, corners in _need(record, "boxes", record.boxes):
        x0, y0, x1, y1 = (round(value) for value in corners)
        found.append((label, (x0, y0, x1, y1)))
    return found


def _need(record: CodedRecord, name: str, value: T | None) -> T:
    if not value:
        raise ValueError(f"record {record.id!r}: no {name}, which this template tells")
    return value
