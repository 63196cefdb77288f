"""A sample of a source in memory, pictures opened and split: what the tokenizers, the retriever and
the evaluation read. Preparation for the transformer streams instead (`prepare`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cm3leon_jax import config
from cm3leon_jax.data import sources
from cm3leon_jax.data.instructions import find_task
from cm3leon_jax.data.pictures import BadPicture, fit_boxes, open_picture, upright_size
from cm3leon_jax.data.records import Record, Skipped, is_held_out, picture_of
from cm3leon_jax.data.shards import FIELDS, CodedRecord
from cm3leon_jax.data.templates import TEMPLATES
from cm3leon_jax.tokens.wording import Filled


@dataclass(frozen=True, eq=False)
class Example:
    """One record with its pictures opened: texts (str) and images (uint8 [Y X 3]) in order."""

    record: Record
    segments: tuple[str | NDArray[np.uint8], ...]

    @property
    def id(self) -> str:
        return self.record.id

    def coded(self, codes: Iterator[NDArray[np.int32]]) -> CodedRecord:
        """The record with the next codes in place of its pictures."""
        return CodedRecord(
            segments=tuple(s if isinstance(s, str) else next(codes) for s in self.segments),
            **{field.name: getattr(self.record, field.name) for field in FIELDS},
        )

    @property
    def texts(self) -> list[str]:
        return [part for part in self.segments if isinstance(part, str)]

    @property
    def images(self) -> list[NDArray[np.uint8]]:
        return [part for part in self.segments if not isinstance(part, str)]


class Collection(NamedTuple):
    """A source, read and split; `tasks` has what is trained on for each of `data.tasks`."""

    train: list[Example]
    held_out: list[Example]
    skipped: Skipped
    tasks: dict[str, list[Example]]


def collect(data: config.Data, size: int) -> Collection:
    """Reads at most `data.sample` records with every picture as a square of `size` pixels, and
    those of `data.tasks`.

    Parts come in a shuffled order, so that a sample of a large source is one of all its files.
    """
    main = _collect(data, size)
    few = main.train[: -(-len(main.train) // 10)]
    tasks: dict[str, list[Example]] = {}
    for task, of in sources.told_of(data).items():
        if task == of:
            tasks[task] = _collect(sources.for_task(data, task), size).train
        else:
            tasks[task] = tasks[of] if of else few
    _check_pairs(data, main)
    return main._replace(tasks=tasks)


def _collect(data: config.Data, size: int) -> Collection:
    skipped = Skipped()
    train: list[Example] = []
    held_out: list[Example] = []
    parts = sources.plan(data, size)
    for number in np.random.default_rng(data.seed).permutation(len(parts)):
        for record in sources.read(parts[number], data, size, skipped):
            try:
                example = open_example(record, size)
            except BadPicture as error:
                skipped.add(record.origin or record.id, str(error))
                skipped.check_early(data.max_bad_fraction)
                continue
            side = held_out if is_held_out(record.group, data.held_out) else train
            side.append(example)
            if len(train) + len(held_out) == data.sample:
                break
        else:
            continue
        break
    skipped.check(data.max_bad_fraction)
    return Collection(train, held_out, skipped, {})


def _check_pairs(data: config.Data, found: Collection) -> None:
    for name, side in (("to train on", found.train), ("held out", found.held_out)):
        if not any(example.texts and example.images for example in side):
            count = len(found.train) + len(found.held_out)
            raise ValueError(
                f"data.source={data.source!r}: of {count} documents none"
                f" {name} has a text and a picture; give more documents, or another share with"
                f" --config.data.held_out (now {data.held_out})"
            )


def open_example(record: Record, size: int) -> Example:
    """The record with its pictures read and checked, and its boxes in pixels of the square.

    Raises BadPicture.
    """
    segments = tuple(
        part if isinstance(part, str) else open_picture(part, size) for part in record.segments
    )
    has_text = any(isinstance(part, str) for part in segments)
    if not (has_text or record.question or record.instruction):
        raise BadPicture("no text, question or instruction")
    if record.boxes:
        picture = picture_of(record.segments)
        if picture is None:
            raise BadPicture("boxes without a picture")
        record = replace(record, boxes=fit_boxes(record.boxes, *upright_size(picture), size))
    return Example(record, segments)


def written(task: str, examples: Sequence[Example]) -> Iterator[str]:
    """All strings of the documents that a task makes of the examples."""
    template = TEMPLATES[find_task(task).template]
    for example in examples:
        for parts in template(example.coded(repeat(np.zeros(1, np.int32)))):
            for part in parts:
                if isinstance(part, str):
                    yield part
                elif isinstance(part, Filled):
                    yield from (text for text, _ in part.pieces() if text)


def captioned(examples: Sequence[Example]) -> tuple[list[str], NDArray[np.uint8]]:
    """The first text and its picture, of every example that has both."""
    both = [example for example in examples if example.texts and example.images]
    return [e.texts[0] for e in both], np.array([picture_of(e.segments) for e in both], np.uint8)
