"""Packed rows read back: which examples a batch holds, what was masked in them, where it stood.

Everything comes from the batch itself: an example is cut out of its row, its spans are found and
its document is restored. What a batch does not say is kept by `Watched` examples as an `Origin`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from cm3leon_jax import config
from cm3leon_jax.data.examples import Documents, Examples, Neighbours, Told, to_document
from cm3leon_jax.tokens.document import Document, Span, spans
from cm3leon_jax.tokens.objective import provenance, restore
from cm3leon_jax.tokens.packing import Batch
from cm3leon_jax.tokens.text import TextTokenizer
from cm3leon_jax.tokens.vocabulary import EOSS, Vocabulary


@dataclass(frozen=True)
class Origin:
    """What a batch does not say about an example."""

    document: Document
    name: str = ""  # id of the record
    found: tuple[str, ...] = ()  # about each retrieved document: its id, how it was found


class Watched(Examples):
    """Examples that remember the `origins` of all that they gave."""

    def __init__(
        self,
        documents: Documents,
        text: TextTokenizer,
        c: config.Experiment,
        memory: Documents = (),
        neighbours: Neighbours | None = None,
        *more: str,
    ) -> None:
        super().__init__(documents, text, c, memory, neighbours, *more)
        self._told = documents, memory, neighbours
        self.origins: list[Origin] = []

    def tell(self, index: int, rng: np.random.Generator) -> Told:
        told = super().tell(index, rng)
        document = told.document
        documents, memory, neighbours = self._told
        notes: dict[Document, str] = {}
        if document.retrieved and neighbours is not None:
            for row, score, by in neighbours[[index]][0].tolist():
                if row >= 0:
                    how = f"{score:.2f} by {('text', 'image')[by]}"
                    notes[to_document(memory[row], self.text)] = f"{how} · {memory[row].id}"
        found = tuple(notes.get(one, "") for one in document.retrieved)
        self.origins.append(Origin(document, documents[index].id, found))
        return told


@dataclass(frozen=True, eq=False)
class Seen:
    """One packed example, read back."""

    ids: NDArray[np.integer]  # [n], rotated
    weights: NDArray[np.floating]  # [n], of each id as a target; the first is none
    origins: NDArray[np.int64]  # [n], position in the document or -1
    document: NDArray[np.uint32]  # [T]
    segments: list[Span]
    holes: list[tuple[int, int]]  # [start, stop) in the document, of <mask:0>, <mask:1>, ...
    origin: Origin

    @property
    def size(self) -> int:
        """Places in the row."""
        return len(self.ids) - 1

    def documents(self) -> list[list[Span]]:
        """The segments of each retrieved document, then those of the main one."""
        every = (*self.origin.document.retrieved, self.origin.document)
        edges = list(accumulate((len(one.segments) for one in every), initial=0))
        return [self.segments[start:stop] for start, stop in pairwise(edges)]

    def masked(self, segment: Span, holes: Iterable[int]) -> NDArray[np.bool_]:
        """Which ids of a segment stand in those holes."""
        places, found = segment.start + np.arange(segment.length), np.zeros(segment.length, bool)
        for low, high in (self.holes[i] for i in holes):
            found |= (places >= low) & (places < high)
        return found

    def weight(self, start: int, stop: int) -> float:
        """Mean loss weight of the ids that stand at [start, stop) in the document."""
        return float(self.weights[(self.origins >= start) & (self.origins < stop)].mean())


def read_row(row: Batch, vocabulary: Vocabulary, origins: Mapping[bytes, Origin]) -> list[Seen]:
    """The examples of one packed row, each array [T]; the inverse of `packing.fill_row`.

    `origins` are looked up by the bytes of a document's ids; raises ValueError for one without.
    """
    found = []
    for segment in range(1, int(row["segments"].max(initial=0)) + 1):
        inside = row["segments"] == segment
        ids = np.append(row["tokens"][inside][:1], row["targets"][inside]).astype(np.int64)
        weights = np.append(0, row["weights"][inside])
        places, document = provenance(ids, vocabulary), restore(ids, vocabulary)
        opens = np.flatnonzero(vocabulary.is_mask(ids))
        fills = zip(opens[len(opens) // 2 :] + 1, np.flatnonzero(ids == EOSS))
        holes = [(int(places[low]), int(places[high - 1]) + 1) for low, high in fills]
        if document.tobytes() not in origins:
            rule = "read the batch from Watched examples, with data.workers=0"
            raise ValueError(f"example {segment} of a row has no origin: {rule}")
        segments, origin = spans(document, vocabulary), origins[document.tobytes()]
        found.append(Seen(ids, weights, places, document, segments, holes, origin))
    return found
