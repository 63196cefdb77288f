"""Examples of one source: a record becomes a document behind the neighbours drawn for it, rotated.

Neighbours (paper section 2.1) were found offline. How many stand in front, and which, is drawn anew
with every epoch's generator, so a document is also seen alone where `retrieval.least` is 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from cm3leon_jax import config
from cm3leon_jax.checkpoint import read_experiment
from cm3leon_jax.data.instructions import find_task
from cm3leon_jax.data.shards import CodedRecord, Shards
from cm3leon_jax.data.templates import TEMPLATES, Cut, Parts
from cm3leon_jax.fields import require
from cm3leon_jax.mapped import Mapped
from cm3leon_jax.tokens.document import Document, Image, Text
from cm3leon_jax.tokens.objective import code_places, rotate, token_weights
from cm3leon_jax.tokens.packing import Example
from cm3leon_jax.tokens.text import TextTokenizer
from cm3leon_jax.tokens.vocabulary import Vocabulary

SPLITS = ("train", "held_out")


class Documents(Protocol):
    """Coded records by number: a list of them, or `shards.Shards`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> CodedRecord: ...


class Neighbours(Protocol):
    """Rows of (row, score, by), [N M], by numbers: a structured array, or `mapped.Mapped`."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: list[int], /) -> NDArray[Any]: ...


class Told(NamedTuple):
    """A document, and what in it is answered: [start, stop) of `Document.to_ids`, in order.

    Where no text has marked answers that is the last segment.
    """

    document: Document
    answers: list[tuple[int, int]]


@dataclass(frozen=True)
class Source:
    """What a task declares: the documents of a work directory, and how they are told.

    Without a template that is `data.task` of the directory's config.json.
    """

    name: str
    workdir: Path | str
    split: Literal["train", "held_out"] = "train"
    template: str = ""

    def __post_init__(self) -> None:
        for field, known in (("split", SPLITS), ("template", ("", *TEMPLATES))):
            value = getattr(self, field)
            if value not in known:
                raise ValueError(
                    f"source {self.name!r}: {field}={value!r}: use"
                    f" {' or '.join(filter(None, known))}"
                )


class Examples:
    """A source, opened: documents by number, as the transformer is trained on them.

    The memory is what `neighbours` point into; without neighbours documents stand alone. Everything
    may be handed to a worker process.
    """

    def __init__(
        self,
        documents: Documents,
        text: TextTokenizer,
        c: config.Experiment,
        memory: Documents = (),
        neighbours: Neighbours | None = None,
        template: str = "plain",
        name: str = "documents",
    ) -> None:
        self._vocabulary = Vocabulary.of(c.model)
        text.check_fits(self._vocabulary)
        if not len(documents):
            rule = "check data.source, data.count and data.held_out"
            raise ValueError(f"source {name!r}: there are no documents; {rule}")
        if neighbours is not None and len(neighbours) != len(documents):
            raise ValueError(
                f"source {name!r}: neighbours of {len(neighbours)} documents, there are"
                f" {len(documents)}: run `cm3leon retrieve` again"
            )
        self.name, self.text = name, text
        self._documents, self._memory, self._neighbours = documents, memory, neighbours
        self._c, self._template = c, TEMPLATES[template]

    @classmethod
    def open(cls, source: Source, text: TextTokenizer, c: config.Experiment) -> Self:
        """Opens a source on disk; neighbours only where there are some and `retrieval.most` > 0.

        Raises FileNotFoundError for unfinished sets, ValueError for sets that do not belong
        together.
        """
        folder = Path(source.workdir) / "documents"
        documents, memory = Shards(folder, source.split), Shards(folder, "train")
        neighbours = None
        if c.retrieval.most > 0 and (found := folder.with_name("neighbours")).exists():
            neighbours = Mapped(found, source.split)
            count = neighbours.meta.get("memory", {}).get("count", len(memory))
            made = (neighbours.meta.get("retriever", "none"), count)
            wanted = (memory.made_by.get("retriever", "none"), len(memory))
            if made != wanted:
                raise ValueError(
                    f"{found}: found with the retriever {made[0]} among {made[1]} documents,"
                    f" {folder} has vectors of {wanted[0]} and {wanted[1]}:"
                    " run `cm3leon retrieve` again"
                )
        template = source.template or "plain"
        if (folder.parent / "config.json").exists():
            data, length = read_experiment(folder.parent).data, c.data.row_length
            template = source.template or find_task(data.task).template
            rule = f"{folder} was prepared with {data.row_length}: use no less, or prepare again"
            require(length >= data.row_length, "data.row_length", length, rule)
        return cls(documents, text, c, memory, neighbours, template, source.name)

    def __len__(self) -> int:
        return len(self._documents)

    def document(self, index: int, rng: np.random.Generator) -> Document:
        """The document of `tell`."""
        return self.tell(index, rng).document

    def tell(self, index: int, rng: np.random.Generator) -> Told:
        """The document, with as many of its drawn neighbours in front as fit a row.

        Nothing is ever cut. A document that does not fit alone raises ValueError.
        """
        record = self._documents[index]
        ways = self._template(record)
        parts = ways[rng.integers(len(ways))] if len(ways) > 1 else ways[0]
        main, answers = tell(parts, self.text)
        longest, places = self._c.data.row_length, count_places(main.segments)
        if places > longest:
            raise ValueError(
                f"source {self.name!r}, document {record.id!r}: {places} tokens,"
                f" data.row_length={longest}: shorten it or use longer rows"
            )
        room = longest - places
        retrieved: list[Document] = []
        for row in self._draw(index, rng):
            neighbour = to_document(self._memory[row], self.text)
            room -= count_places(neighbour.segments)
            if room < 0:
                break
            retrieved.append(neighbour)
        document = Document(main.segments, retrieved)
        moved = document.main_start - main.main_start
        return Told(document, [(start + moved, stop + moved) for start, stop in answers])

    def example(self, index: int, rng: np.random.Generator) -> Example:
        """The document, rotated, with the loss weight and the place in its image of every id."""
        document, answers = self.tell(index, rng)
        ids = document.to_ids(self._vocabulary, self._c.model.image_tokens)
        longest, objective = self._c.data.row_length + 1, self._c.objective
        rotated = rotate(ids, self._vocabulary, rng, objective, longest, answers)
        start = document.main_start
        weights = token_weights(rotated, self._vocabulary, objective, start, answers)
        return Example(rotated, weights, code_places(rotated, self._vocabulary))

    def _draw(self, index: int, rng: np.random.Generator) -> list[int]:
        """Rows of the memory: least to most of the neighbours, in a random order, or none."""
        if self._neighbours is None or rng.random() < self._c.retrieval.alone:
            return []
        rows = self._neighbours[[index]]["row"]
        found = rng.permutation(np.unique(rows[rows >= 0]))
        retrieval = self._c.retrieval
        return found[: rng.integers(retrieval.least, retrieval.most + 1)].tolist()


def to_document(record: CodedRecord, text: TextTokenizer) -> Document:
    """The record as it was read: so documents of the memory stand in front of others."""
    return tell(record.segments, text).document


def tell(parts: Parts, text: TextTokenizer) -> Told:
    """The parts as a document without retrieved ones."""
    segments: list[Text | Image] = []
    answers, at = [], 1
    for part in parts:
        start = at
        if isinstance(part, np.ndarray | Cut):
            codes, inside = part if isinstance(part, Cut) else (part, [])
            segments.append(Image(codes))
            answers += [(at + first, at + end) for first, end in inside]
            at += len(codes)
        else:
            ids: list[int] = []
            for piece, is_answer in [(part, False)] if isinstance(part, str) else part.pieces():
                ids += text.encode(piece)
                answers += [(at, start + len(ids))] if is_answer else []
                at = start + len(ids)
            segments.append(Text(ids))
        last, at = (start, at), at + 1
    return Told(Document(segments), answers or [last])


def count_places(segments: Sequence[Text | Image]) -> int:
    """Places in a row: all ids and what stands in front of each segment, <eos> or <break>."""
    return sum(
        1 + len(segment.ids if isinstance(segment, Text) else segment.codes) for segment in segments
    )
