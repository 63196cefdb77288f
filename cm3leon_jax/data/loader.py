"""Streams of batches whose every batch is a pure function of a position of a few integers.

So a run repeats, a checkpoint stores the position itself, and seeking costs nothing. Each row of
the global batch has a stream of its own: what row 3 reads does not depend on the rows beside it,
nor on the host that reads it. The next batch is made in the background.
"""

import itertools
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cm3leon_jax import config
from cm3leon_jax.data.shards import TokenDocument
from cm3leon_jax.tokens.objective import rng_for, rotate, token_weights
from cm3leon_jax.tokens.packing import Batch, Example, fill_row, stack, take_fitting
from cm3leon_jax.tokens.vocabulary import Vocabulary


class Documents(Protocol):
    """Token documents by number: a list of them, or `shards.Shards`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> TokenDocument: ...


# position -> (batch at this position, position of the next batch); positions are lists of integers
Make = Callable[[list[int]], tuple[Batch, list[int]]]


class Stream:
    """Endless batches from a pure `make`, one made ahead; `position` is that of the next batch."""

    def __init__(self, make: Make, first: list[int]):
        self._make = make
        self.position = first

    def seek(self, position: list[int]) -> None:
        """Goes to a position that an earlier stream of the same data had."""
        if len(position) != len(self.position):
            raise ValueError(
                f"data position of {len(position)} streams, this run has {len(self.position)}:"
                " resume with the train.batch that the run was started with"
            )
        self.position = list(position)

    def __iter__(self) -> Generator[Batch]:
        with ThreadPoolExecutor(1) as background:
            coming = background.submit(self._make, self.position)
            while True:
                batch, self.position = coming.result()
                coming = background.submit(self._make, self.position)
                yield batch


def token_batches(documents: Documents, c: config.Experiment) -> Stream:
    """Masked and packed rows, all [B T]: tokens targets weights segments positions.

    Every epoch is shuffled and masked anew. Example k of row r is the document at place k * B + r
    of the endless shuffled sequence; the position is each row's k.
    """
    count, rows, length = len(documents), c.train.batch, c.data.row_length
    vocabulary, objective = Vocabulary.of(c.model), c.objective
    if count == 0:
        raise ValueError("data: there are no training documents; check data.source and data.count")

    @lru_cache(maxsize=4 * rows)  # an example that did not fit is the next row's first
    def example(place: int) -> Example:
        epoch, index = divmod(place, count)
        document = documents[int(shuffled(c.train.seed, epoch, count)[index])]
        rng = rng_for(c.train.seed, epoch, index)
        ids = rotate(document.ids, vocabulary, rng, objective, max_length=length + 1)
        return Example(ids, token_weights(ids, vocabulary, objective))

    def make(position: list[int]) -> tuple[Batch, list[int]]:
        filled, after = [], []
        for row, taken in enumerate(position):
            coming = (example((taken + k) * rows + row) for k in itertools.count())
            examples = take_fitting(coming, length)
            filled.append(fill_row(examples, length))
            after.append(taken + len(examples))
        return stack(filled), after

    return Stream(make, [0] * rows)


def image_batches(images: NDArray[np.uint8], batch: int, seed: int) -> Stream:
    """Batches {'images': uint8 [B Y X 3]} of shuffled epochs; the position is a count of images."""
    count = len(images)
    if count == 0:
        raise ValueError("data: there are no training images; check data.source and data.count")

    def make(position: list[int]) -> tuple[Batch, list[int]]:
        places = position[0] + np.arange(batch)
        order = [shuffled(seed, int(epoch), count)[i] for epoch, i in zip(*divmod(places, count))]
        return {"images": images[order]}, [position[0] + batch]

    return Stream(make, [0])


@lru_cache(maxsize=2)
def shuffled(seed: int, epoch: int, count: int) -> NDArray[Any]:
    """The order of one epoch."""
    return np.random.default_rng((seed, epoch)).permutation(count)
