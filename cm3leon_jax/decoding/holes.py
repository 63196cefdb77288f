"""Holes of documents: where they are, the prompt that asks for the next one, and splicing.

    <eos> a <mask:0> <break> 7 <mask:1> 4 <eos> <mask:0> b c <eoss> <mask:1>   ->   5 9

Every MASK in a text is a hole of open length. An image has MASK in place of each missing code, and
an unbroken run of them is one hole, so its length is known.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cm3leon_jax.decoding.prompts import Ids, join
from cm3leon_jax.fields import require
from cm3leon_jax.tokens.document import MASK, Document, Image, Text
from cm3leon_jax.tokens.vocabulary import EOSS, Vocabulary
from cm3leon_jax.tokens.wording import Box

Fill = tuple[int, ...]
"""Pieces or codes of one hole."""


class Hole(NamedTuple):
    """The values start .. stop - 1 of one segment of the main document."""

    segment: int
    start: int
    stop: int
    is_image: bool


def find_holes(document: Document) -> list[Hole]:
    """All holes of the main document, in order."""
    found = []
    for index, segment in enumerate(document.segments):
        is_hole = np.array(values(segment)) == MASK
        if isinstance(segment, Text):
            found += [Hole(index, at, at + 1, False) for at in np.flatnonzero(is_hole).tolist()]
        else:
            edges = np.flatnonzero(np.diff(np.r_[False, is_hole, False])).tolist()
            found += [Hole(index, a, b, True) for a, b in list(pairwise(edges))[::2]]
    return found


def fill_prompt(
    document: Document, fills: Sequence[Fill], vocabulary: Vocabulary
) -> tuple[Ids, Ids]:
    """Ids [T] that ask for the hole after those of `fills`, and the codes' places in their images.

    A place is that in the whole image, -1 for what is no code: a hole shifts none.
    """
    segments = [s for d in (*document.retrieved, document) for s in d.segments]
    shown, places = zip(*map(_collapse, segments))
    ids, at = join(Document(shown).to_ids(vocabulary)), join([-1])
    for row in places:
        at = join(at, row, [-1])  # behind each segment its <break>, behind the last one <eos>
    holes = find_holes(document)
    for index, fill in enumerate(fills):
        _, start, stop, is_image = holes[index]
        inside = vocabulary.image_ids(fill) if is_image else vocabulary.text_ids(fill)
        ids = join(ids, [vocabulary.mask(index)], inside, [EOSS])
        at = join(at, [-1], range(start, stop) if is_image else [-1] * len(fill), [-1])
    return join(ids, [vocabulary.mask(len(fills))]), join(at, [-1])


def splice(document: Document, fills: Sequence[Fill]) -> Document:
    """The document with every hole filled; all else is as it was."""
    segments = [list(values(segment)) for segment in document.segments]
    for (index, start, stop, _), fill in reversed(list(zip(find_holes(document), fills))):
        segments[index][start:stop] = fill
    kinds = map(type, document.segments)
    return Document([kind(new) for kind, new in zip(kinds, segments)], document.retrieved)


def complete_images(document: Document, image_tokens: int) -> Document:
    """The document with `image_tokens` values in every image.

    A single MASK in a shorter image stands for all that is missing. Raises ValueError where that
    is not clear.
    """
    segments = []
    for segment in document.segments:
        if isinstance(segment, Image) and len(segment.codes) != image_tokens:
            codes, missing = list(segment.codes), image_tokens - len(segment.codes) + 1
            if codes.count(MASK) != 1 or missing < 1:
                rule = f"use {image_tokens}, MASK for each that is missing (g.mask_image does so)"
                raise ValueError(f"codes of an image={len(codes)}: {rule}")
            at = codes.index(MASK)
            segment = Image([*codes[:at], *[MASK] * missing, *codes[at + 1 :]])
        segments.append(segment)
    return Document(segments, document.retrieved)


def cut_box(image: Text | Image, box: Box, size: int, most: int) -> Image:
    """The image without the codes that a box of pixels touches, of size x size pixels.

    Raises ValueError if the box is empty or outside, or if the image would have more than `most`
    holes: one for each row of codes that the box cuts, all full rows together being one.
    """
    left, top, right, bottom = check_box("box", box, size)
    codes = np.array(values(image))
    side = round(len(codes) ** 0.5)
    patch = size // side
    grid = codes.reshape(side, side)
    grid[top // patch : -(-bottom // patch), left // patch : -(-right // patch)] = MASK
    cut = Image(grid.reshape(-1))
    count = len(find_holes(Document([cut])))
    rule = (
        f"at most {most} = objective.max_spans fit; full rows, (0, top, {size}, bottom), are one,"
        f" other boxes have one for each row of codes, {patch} pixels"
    )
    require(count <= most, f"box={box!r}: holes", count, rule)
    return cut


def check_box(name: str, box: Box, size: int) -> Box:
    """The box as ints; raises ValueError if it is no box inside size x size pixels."""
    rule = f"use 4 whole numbers with 0 <= left < right <= {size} and 0 <= top < bottom <= {size}"
    require(len(box) == 4 and all(value == int(value) for value in box), name, box, rule)
    left, top, right, bottom = map(int, box)
    require(0 <= left < right <= size and 0 <= top < bottom <= size, name, box, rule)
    return left, top, right, bottom


def check_boxes(boxes: Sequence[tuple[str, Box]], size: int) -> list[tuple[str, Box]]:
    """Named boxes, each as `check_box` gives it."""
    require(len(boxes) > 0, "boxes", boxes, "use at least one (name, box)")
    for index, (name, _) in enumerate(boxes):
        require(bool(name.strip()), f"boxes[{index}] name", name, "use some text")
    return [(name, check_box(f"boxes[{i}]", box, size)) for i, (name, box) in enumerate(boxes)]


def values(segment: Text | Image) -> tuple[int, ...]:
    return segment.ids if isinstance(segment, Text) else segment.codes


def _collapse(segment: Text | Image) -> tuple[Text | Image, NDArray[np.integer]]:
    """The segment with one MASK for each hole, and the places of its values."""
    row = np.array(values(segment))
    if isinstance(segment, Text):
        return segment, np.full(len(row), -1)
    is_hole = row == MASK
    kept = ~is_hole | np.r_[True, ~is_hole[:-1]]
    return Image(row[kept]), np.where(is_hole, -1, np.arange(len(row)))[kept]
