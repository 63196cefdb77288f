"""Spans that cross `<break>`, as in CM3 and RA-CM3: what part (g) compares the objective with.

No config can say this: everything else relies on segments that are never cut in two.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from cm3leon_jax.data import loader
from cm3leon_jax.data.examples import Examples
from cm3leon_jax.tokens.document import Span
from cm3leon_jax.tokens.objective import ADDED, code_places, draw_spans, relocate
from cm3leon_jax.tokens.packing import Example
from cm3leon_jax.tokens.vocabulary import Vocabulary


@contextmanager
def spans_across_breaks() -> Iterator[None]:
    """Within it training rows have such spans; held-out rows stay as they are."""
    with mock.patch.object(loader, "Examples", AcrossBreaks):
        yield


class AcrossBreaks(Examples):
    """Examples whose spans are drawn as if the document were one segment."""

    def example(self, index: int, rng: np.random.Generator) -> Example:
        document = self.document(index, rng)
        ids = document.to_ids(self._vocabulary, self._c.model.image_tokens)
        limit = (self._c.data.row_length + 1 - len(ids)) // ADDED
        whole = [Span("text", 1, len(ids) - 2)]
        chosen = draw_spans(whole, rng, self._c.objective, limit)
        return relocate_example(ids, chosen, self._vocabulary)


def relocate_example(
    ids: NDArray[np.integer[Any]], chosen: list[tuple[int, int]], vocabulary: Vocabulary
) -> Example:
    """The document's ids [T] with the chosen [start, stop) moved; codes keep their places."""
    numbered = np.arange(len(ids), dtype=np.uint32) + vocabulary.size  # above all sentinels
    origin = relocate(numbered, chosen, vocabulary).astype(np.int64) - vocabulary.size
    places = np.where(origin >= 0, code_places(ids, vocabulary)[np.maximum(origin, 0)], -1)
    moved = relocate(ids, chosen, vocabulary)
    return Example(moved, np.ones(len(moved), np.float32), places.astype(np.int32))
