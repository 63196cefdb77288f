"""From records to token documents: read and check the pictures, split, tokenize.

A record that cannot be read is skipped, counted and listed; the split into training and held-out
documents follows the id alone.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cm3leon_jax import config
from cm3leon_jax.data import emoji, scene_text, scenes, sources
from cm3leon_jax.data.pictures import BadPicture, open_picture
from cm3leon_jax.data.shards import TokenDocument
from cm3leon_jax.data.sources import Record, Skipped
from cm3leon_jax.tokens.document import Document, Image, Text, spans
from cm3leon_jax.tokens.text import TextTokenizer
from cm3leon_jax.tokens.vocabulary import Vocabulary

# Pictures uint8 [B Y X 3] -> codes [B, image_tokens]
Encode = Callable[[NDArray[np.uint8]], NDArray[np.integer]]


@dataclass(frozen=True, eq=False)
class Example:
    """One record with its pictures opened: texts (str) and images (uint8 [Y X 3]) in order."""

    id: str
    segments: tuple[str | NDArray[np.uint8], ...]
    license: str = ""
    source_url: str = ""
    origin: str = ""  # for messages

    @property
    def texts(self) -> list[str]:
        return [part for part in self.segments if isinstance(part, str)]

    @property
    def images(self) -> list[NDArray[np.uint8]]:
        return [part for part in self.segments if not isinstance(part, str)]


class Collection(NamedTuple):
    """A source, read and split."""

    train: list[Example]
    held_out: list[Example]
    skipped: Skipped


def read_records(data: config.Data, size: int, skipped: Skipped) -> Iterator[Record]:
    """The records of `data.source`; procedural and font pictures are made at `size` pixels."""
    if data.source == "scenes":
        grids = {layout.size: grid for grid, layout in scenes.LAYOUTS.items()}
        if size not in grids:
            raise ValueError(f"image_tokenizer.size={size}: scenes have {sorted(grids)} pixels")
        yield from scene_text.records(data.count, data.seed, grids[size])
    elif data.source == "emoji":
        yield from emoji.records(size, data.font or None)
    else:
        yield from sources.read_folder(data.source, skipped, data.max_bad_fraction)


def collect(data: config.Data, size: int) -> Collection:
    """Reads at most `data.count` records with every picture as a square of `size` pixels."""
    skipped = Skipped()
    train: list[Example] = []
    held_out: list[Example] = []
    for record in islice(read_records(data, size, skipped), data.count):
        origin = record.origin or record.id
        try:
            segments = tuple(
                part if isinstance(part, str) else open_picture(part, size)
                for part in record.segments
            )
            if not any(isinstance(part, str) for part in segments):
                raise BadPicture("no text: question, answer and instruction are not trained on yet")
        except BadPicture as error:
            skipped.add(origin, str(error))
            skipped.check_early(data.max_bad_fraction)
            continue
        side = held_out if sources.is_held_out(record.group, data.held_out) else train
        side.append(Example(record.id, segments, record.license, record.source_url, origin))
    skipped.seen = max(skipped.seen, len(train) + len(held_out) + len(skipped.reasons))
    skipped.check(data.max_bad_fraction)
    for name, side in (("to train on", train), ("held out", held_out)):
        if not any(example.texts and example.images for example in side):
            raise ValueError(
                f"data.source={data.source!r}: of {len(train) + len(held_out)} documents none"
                f" {name} has a text and a picture; give more documents, or another share with"
                f" --config.data.held_out (now {data.held_out})"
            )
    return Collection(train, held_out, skipped)


def captioned(examples: Sequence[Example], count: int) -> tuple[list[str], NDArray[np.uint8]]:
    """The first `count` examples that have both: a text and a picture of each."""
    both = [e for e in examples if e.texts and e.images][:count]
    return [e.texts[0] for e in both], np.array([e.images[0] for e in both], np.uint8)


def keep_fitting(
    examples: Sequence[Example],
    text: TextTokenizer,
    experiment: config.Experiment,
    skipped: Skipped,
) -> list[Example]:
    """The examples that fit a row whole; the others are skipped and listed."""
    places, kept = experiment.data.row_length, []
    for example in examples:
        sizes = [len(text.encode(part)) for part in example.texts]
        sizes += [experiment.model.image_tokens] * len(example.images)
        length = sum(sizes) + len(sizes)  # read: all but the closing <eos>
        if length <= places:
            kept.append(example)
        else:
            skipped.add(example.origin, f"{length} tokens, data.row_length={places}: shorten it")
    return kept


def tokenize(
    examples: Sequence[Example],
    text: TextTokenizer,
    encode: Encode,
    model: config.Model,
) -> Iterator[TokenDocument]:
    """Token documents, in order."""
    vocabulary = Vocabulary.of(model)
    for chunk in _chunks(examples, 256):
        images = [image for example in chunk for image in example.images]
        codes = iter(encode(np.stack(images)) if images else ())
        for example in chunk:
            document = Document(
                tuple(
                    Text(tuple(text.encode(part))) if isinstance(part, str) else Image(next(codes))
                    for part in example.segments
                )
            )
            ids = document.to_ids(vocabulary, model.image_tokens)
            yield TokenDocument(example.id, ids, tuple(spans(ids, vocabulary)), example.source_url)


def _chunks(examples: Iterable[Example], size: int) -> Iterator[list[Example]]:
    stream = iter(examples)
    while chunk := list(islice(stream, size)):
        yield chunk
