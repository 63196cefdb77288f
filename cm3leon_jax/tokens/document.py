"""Documents: segments of text and images, with retrieved documents in front of the main one.

    <eos> caption <break> image <break> ... <break> main caption <break> main image <eos>

`<break>` stands between all segments, of one document and between documents; `<eos>` stands at both
ends (paper section 2.1, figures 8 and 9). `Document.to_ids` and `Document.from_ids` are inverses.
Models of `model.documents` "chameleon" are prompted in their own form: `decoding.prompts`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cm3leon_jax.tokens.vocabulary import BREAK, EOS, MASK_START, Vocabulary

MASK = -1  # a hole of unknown length inside a segment, to be filled


@dataclass(frozen=True, init=False)
class Text:
    """Piece ids of one text; MASK marks a hole, `Text([MASK])` is a wholly unknown segment."""

    ids: tuple[int, ...]

    def __init__(self, ids: ArrayLike) -> None:
        object.__setattr__(self, "ids", _as_tuple(ids, "Text.ids"))


@dataclass(frozen=True, init=False)
class Image:
    """Codes of one image in raster order; MASK marks a hole."""

    codes: tuple[int, ...]

    def __init__(self, codes: ArrayLike) -> None:
        object.__setattr__(self, "codes", _as_tuple(codes, "Image.codes"))


class Span(NamedTuple):
    """A segment's place in a sequence of ids."""

    kind: Literal["text", "image"]
    start: int
    length: int


@dataclass(frozen=True, init=False)
class Document:
    """Segments in order, and the retrieved documents (which have none of their own)."""

    segments: tuple[Text | Image, ...]
    retrieved: tuple["Document", ...]

    def __init__(
        self, segments: Iterable[Text | Image], retrieved: Iterable["Document"] = ()
    ) -> None:
        object.__setattr__(self, "segments", tuple(segments))
        object.__setattr__(self, "retrieved", tuple(retrieved))
        if not self.segments:
            raise ValueError("Document.segments=(): a document needs at least one segment")
        for segment in self.segments:
            if not isinstance(segment, Text | Image):
                raise ValueError(f"Document.segments holds {segment!r}: use Text or Image")
        for index, document in enumerate(self.retrieved):
            if document.retrieved:
                rule = "a retrieved document has none of its own"
                raise ValueError(f"Document.retrieved[{index}] has retrieved documents: {rule}")

    @property
    def main_start(self) -> int:
        """Position in `to_ids` of the main document's first id."""
        segments = (segment for document in self.retrieved for segment in document.segments)
        return 1 + sum(len(_values(segment)) + 1 for segment in segments)

    def to_ids(self, vocabulary: Vocabulary, image_tokens: int | None = None) -> NDArray[np.uint32]:
        """The id sequence [T]; holes become <mask:0>, <mask:1>, ... in order.

        With `image_tokens` every image without holes must have exactly so many codes.
        """
        parts: list[NDArray[np.uint32]] = []
        holes = 0
        for segment in self._all_segments():
            values = np.asarray(_values(segment), dtype=np.int64)
            is_hole = values == MASK
            known = np.where(is_hole, 0, values)
            if isinstance(segment, Text):
                ids = vocabulary.text_ids(known)
            else:
                _check_size(len(values), bool(is_hole.any()), image_tokens)
                ids = vocabulary.image_ids(known)
            for position in np.flatnonzero(is_hole):
                ids[position] = vocabulary.mask(holes)
                holes += 1
            parts += [np.full(1, BREAK if parts else EOS, np.uint32), ids]
        return np.concatenate([*parts, np.full(1, EOS, np.uint32)])

    @classmethod
    def from_ids(
        cls,
        ids: ArrayLike,
        vocabulary: Vocabulary,
        retrieved: Sequence[int] = (),
        image_tokens: int | None = None,
    ) -> "Document":
        """Reads `to_ids` back; a malformed sequence raises ValueError with position and id.

        `retrieved` says how many segments each retrieved document has: `<break>` separates
        segments and documents alike. A segment of sentinels alone reads back as Text.
        """
        array = np.asarray(ids)
        segments = [
            _read(array[start : start + length], kind, vocabulary)
            for kind, start, length in spans(array, vocabulary, image_tokens)
        ]
        if any(count < 1 for count in retrieved) or sum(retrieved) >= len(segments):
            rule = f"counts of at least 1 that leave a main document of {len(segments)} segments"
            raise ValueError(f"retrieved={tuple(retrieved)}: use {rule}")
        documents, start = [], 0
        for count in retrieved:
            documents.append(cls(tuple(segments[start : start + count])))
            start += count
        return cls(tuple(segments[start:]), tuple(documents))

    def _all_segments(self) -> Iterable[Text | Image]:
        for document in self.retrieved:
            yield from document.segments
        yield from self.segments


def spans(ids: ArrayLike, vocabulary: Vocabulary, image_tokens: int | None = None) -> list[Span]:
    """Kind, start and length of every segment of a document's ids [T], retrieved ones first.

    Checks the whole sequence: `<eos>` at both ends only, no empty segment, no text and image in
    one segment, no reserved or unknown id, sentinels in order, and images of `image_tokens` codes
    where given. Raises ValueError with the position and the id.
    """
    array = np.asarray(ids)
    if array.ndim != 1 or array.size < 3 or array.dtype.kind not in "iu":
        shape = f"{array.dtype}{list(array.shape)}"
        raise ValueError(f"ids are {shape}: a document is at least 3 whole numbers in a row")

    end = len(array) - 1
    for position, verb in ((0, "opens"), (end, "closes")):
        if array[position] != EOS:
            raise vocabulary.malformed(array, position, f"a document {verb} with <eos>")
    is_edge = (array == EOS) | (array == BREAK)
    is_mask, is_image = vocabulary.is_mask(array), vocabulary.is_image(array)
    is_text = vocabulary.is_text(array)
    strange = np.flatnonzero(~(is_edge | is_mask | is_text | is_image))
    if strange.size:
        raise vocabulary.malformed(array, int(strange[0]), "does not belong in a document")
    masks = np.flatnonzero(is_mask)
    displaced = masks[array[masks] != MASK_START + np.arange(len(masks))]
    if displaced.size:
        rule = "sentinels stand in order: <mask:0>, <mask:1>, ..."
        raise vocabulary.malformed(array, int(displaced[0]), rule)

    found: list[Span] = []
    edges = np.flatnonzero(is_edge).tolist()
    for before, after in pairwise(edges):
        start, length = before + 1, after - before - 1
        if array[after] == EOS and after != end:
            rule = "<eos> only opens and closes; restore a rotated document first"
            raise vocabulary.malformed(array, after, rule)
        if length == 0:
            raise vocabulary.malformed(array, after, "an empty segment in front")
        images, texts = is_image[start:after], is_text[start:after]
        has_image = bool(images.any())
        if has_image and texts.any():
            second = start + max(int(images.argmax()), int(texts.argmax()))
            rule = "text and image in one segment; put <break> between"
            raise vocabulary.malformed(array, second, rule)
        if has_image:
            _check_size(length, bool(is_mask[start:after].any()), image_tokens, start)
        found.append(Span("image" if has_image else "text", start, length))
    return found


def _check_size(length: int, has_hole: bool, image_tokens: int | None, start: int = -1) -> None:
    """An image with a hole has an unknown size, so only whole images are checked."""
    if image_tokens is not None and length != image_tokens and not has_hole:
        where = f" at position {start}" if start >= 0 else ""
        raise ValueError(f"image{where} of {length} codes: an image has {image_tokens} codes")


def _read(
    ids: NDArray[np.integer], kind: Literal["text", "image"], vocabulary: Vocabulary
) -> Text | Image:
    start = vocabulary.text_start if kind == "text" else vocabulary.image_start
    values = np.where(vocabulary.is_mask(ids), MASK, ids.astype(np.int64) - start)
    return Text(values) if kind == "text" else Image(values)


def _values(segment: Text | Image) -> tuple[int, ...]:
    return segment.ids if isinstance(segment, Text) else segment.codes


def _as_tuple(values: ArrayLike, name: str) -> tuple[int, ...]:
    array = np.asarray(values)
    if array.ndim != 1 or array.size == 0:
        rule = "use a flat sequence of at least one"
        raise ValueError(f"{name} has shape {list(array.shape)}: {rule}")
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} holds {array.dtype}: use whole numbers")
    if array.min() < MASK:
        raise ValueError(f"{name} holds {array.min()}: use numbers >= 0, or MASK=-1 for a hole")
    return tuple(array.tolist())
