"""The id streams of each task, pure functions of segments; wordings are in `tokens.wording`.

A prompt is `<eos>`, the retrieved documents, and the segments, each with its `<break>`: what comes
next is the picture. Streams stand in the order of `logits.combine`.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cm3leon_jax.tokens.document import MASK, Document, Image, Text
from cm3leon_jax.tokens.vocabulary import BREAK, EOSS, Vocabulary

UNKNOWN = Text((MASK,))  # a segment that a stream does not see

Ids = NDArray[np.int32]


def join(*parts: Any) -> Ids:
    """One row of ids out of several."""
    return np.concatenate([np.asarray(part, np.int32) for part in parts])


def prompt(
    segments: Sequence[Text | Image], vocabulary: Vocabulary, retrieved: Iterable[Document] = ()
) -> Ids:
    """`<eos>` retrieved ... segment `<break>` segment `<break>`; holes become sentinels.

    For a model of Chameleon's documents `<s>` text `<racm3:break>` codes `<eoss>` text ... and the
    `<racm3:break>` that begins a picture; what a stream does not see is left out.
    """
    if vocabulary.documents == "chameleon":
        whole = [s for document in retrieved for s in document.segments] + [*segments]
        parts = [_chameleon_ids(segment, vocabulary) for segment in whole if segment != UNKNOWN]
        return join([vocabulary.opening], *parts, [BREAK])
    return join(Document(segments, retrieved).to_ids(vocabulary)[:-1], [BREAK])


def image_streams(
    text: Text, vocabulary: Vocabulary, retrieved: Iterable[Document] = ()
) -> tuple[Ids, Ids]:
    """Conditional and unconditional; retrieved documents stand in front of both."""
    return prompt([text], vocabulary, retrieved), prompt([UNKNOWN], vocabulary, retrieved)


def edit_streams(
    wording: Text,
    image: Image,
    instruction: Text,
    vocabulary: Vocabulary,
    retrieved: Iterable[Document] = (),
) -> tuple[Ids, Ids, Ids]:
    """Full, without the instruction, and without the instruction and the picture."""
    return (
        prompt([wording, image, instruction], vocabulary, retrieved),
        prompt([wording, image, UNKNOWN], vocabulary, retrieved),
        prompt([wording, UNKNOWN, UNKNOWN], vocabulary, retrieved),
    )


def map_streams(
    wording: Text,
    image: Image,
    unused: Text,
    vocabulary: Vocabulary,
    retrieved: Iterable[Document] = (),
) -> tuple[Ids, Ids]:
    """Full, and without the picture whose map is asked for."""
    return (
        prompt([wording, image], vocabulary, retrieved),
        prompt([wording, UNKNOWN], vocabulary, retrieved),
    )


def structure_streams(
    wording: Text,
    map_image: Image,
    text: Text,
    vocabulary: Vocabulary,
    retrieved: Iterable[Document] = (),
) -> tuple[Ids, Ids]:
    """Full, and without the map and the text: one scale strengthens both."""
    return (
        prompt([wording, map_image, text], vocabulary, retrieved),
        prompt([wording, UNKNOWN, UNKNOWN], vocabulary, retrieved),
    )


def _chameleon_ids(segment: Text | Image, vocabulary: Vocabulary) -> Ids:
    """A segment in Chameleon's documents: texts stand bare, pictures between two marks."""
    if isinstance(segment, Text):
        return join(vocabulary.text_ids(segment.ids))
    return join([BREAK], vocabulary.image_ids(segment.codes), [EOSS])
