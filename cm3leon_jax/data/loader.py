"""Streams of batches whose every batch is a pure function of a position of a few integers.

So a run repeats, a checkpoint stores the position itself, and seeking costs nothing. Each row of
the global batch has a stream of its own: what row 3 reads does not depend on the rows beside it,
nor on the host or the worker process that makes it. The next batch is made in the background.
"""

import itertools
import multiprocessing
import os
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import lru_cache, partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cm3leon_jax import config
from cm3leon_jax.data.examples import Examples, Source
from cm3leon_jax.tokens.objective import rng_for
from cm3leon_jax.tokens.packing import Batch, Example, fill_row, stack, take_fitting
from cm3leon_jax.tokens.text import TextTokenizer

SPREAD = 1024  # examples of each row among which a mixture's turns are dealt at random

# position -> batches from there on, each with the position behind it
Read = Callable[[list[int]], Generator[tuple[Batch, list[int]]]]


class Sequential(Protocol):
    """What Grain's random access is used for: an endless sequence of examples."""

    def __getitem__(self, place: int, /) -> Any: ...


class Stream:
    """Endless batches, one made ahead; `position` has an integer for each row that is read here.

    `rows` of `of` are read; all hosts' positions in the order of the rows are what `seek` takes.
    """

    def __init__(self, read: Read, rows: Sequence[int] = (0,), of: int = 1):
        self._read, self.rows, self.of = read, rows, of
        self.position = [0] * len(rows)

    def seek(self, position: Sequence[int]) -> None:
        """Goes to a position of the whole batch that an earlier stream of the same data had."""
        if len(position) != self.of:
            raise ValueError(
                f"data position of {len(position)} streams, this run has {self.of}:"
                " resume with the train.batch that the run was started with"
            )
        self.position = [position[row] for row in self.rows]

    def __iter__(self) -> Generator[Batch]:
        coming = self._read(self.position)
        with closing(coming), ThreadPoolExecutor(1) as background:
            ahead = background.submit(next, coming)
            while True:
                batch, self.position = ahead.result()
                ahead = background.submit(next, coming)
                yield batch


def token_batches(
    sources: Sequence[tuple[Source | Examples, float]],
    text: TextTokenizer,
    c: config.Experiment,
    rows: Sequence[int] | None = None,
) -> Stream:
    """Masked and packed rows, all [B T]: tokens targets weights segments positions codes_at.

    Sources take turns by their rates, which are shares of the examples read; each is shuffled, and
    masked, anew in each of its epochs. Example k of row r is place k * B + r of one endless
    sequence, where B is `train.batch`; the position is each row's k. `rows` are those that this
    host reads, by default all.
    """
    batch = c.train.batch
    rows = range(batch) if rows is None else rows
    examples = [s if isinstance(s, Examples) else Examples.open(s, text, c) for s, _ in sources]
    endless = mix(examples, [rate for _, rate in sources], c.train.seed, batch)
    streams = [endless[row::batch] for row in rows]
    workers = min(c.data.workers, len(rows))
    read = partial(_read_by_workers, workers) if workers else _pack
    return Stream(partial(read, streams, c.data.row_length), rows, batch)


def join_positions(hosts: Iterable[tuple[Sequence[int], Sequence[int]]]) -> list[int]:
    """The position of the whole batch from each host's rows and its position."""
    place = {row: at for rows, position in hosts for row, at in zip(rows, position, strict=True)}
    if sorted(place) != list(range(len(place))):
        raise ValueError(f"positions of rows {sorted(place)}: give each row of the batch once")
    return [place[row] for row in range(len(place))]


def fixed_batch(examples: Examples, c: config.Experiment) -> Batch:
    """`train.batch` rows of documents 0, 1, 2, ... for evaluation: always the same, none twice.

    Where documents run out, rows stay empty.
    """
    numbers, filled = 0, []
    for _ in range(c.train.batch):
        left = range(numbers, len(examples))
        coming = (examples.example(i, rng_for(c.train.seed, 0, i)) for i in left)
        taken = take_fitting(coming, c.data.row_length)
        numbers += len(taken)
        filled.append(fill_row(taken, c.data.row_length))
    return stack(filled)


def image_batches(
    groups: Sequence[NDArray[np.uint8]], batch: int, seed: int, rows: Sequence[int] | None = None
) -> Stream:
    """Batches {'images': uint8 [B Y X 3]}; the position is a count of images.

    Of several groups of pictures the first has every other turn and the rest share the others
    evenly, whatever their sizes; each is read in shuffled epochs of its own. `rows` of each batch
    are those that this host makes, by default all.
    """
    return _array_batches([{"images": images} for images in groups], batch, seed, rows)


def pair_batches(
    images: NDArray[np.uint8],
    texts: NDArray[np.int32],
    batch: int,
    seed: int,
    rows: Sequence[int] | None = None,
) -> Stream:
    """Batches {'images': uint8 [B Y X 3], 'texts': int32 [B T]} of pairs, as `image_batches`."""
    return _array_batches([{"images": images, "texts": texts}], batch, seed, rows)


def mix(examples: Sequence[Examples], rates: Sequence[float], seed: int, batch: int) -> Any:
    """The endless sequence of all sources' examples, a Grain MapDataset: place -> Example.

    Within 1 % of its rate, every source has its turns evenly spread: which of the rows gets one is
    random. By turns of fixed places a row might read one source only.
    """
    import grain
    from grain.experimental import WindowShuffleMapDataset

    if not examples:
        raise ValueError("data: there are no sources to read; check data.mixture")
    for source, rate in zip(examples, rates, strict=True):
        if not rate > 0:
            raise ValueError(f"source {source.name!r}: rate {rate}: must be > 0, or leave it out")
    seeds = np.random.SeedSequence(seed).generate_state(len(examples) + 1) >> 1  # room to count up
    endless = []
    for source, own in zip(examples, map(int, seeds[1:])):  # another order each epoch, in O(1)
        places = grain.MapDataset.range(len(source)).shuffle(seed=own).repeat()
        endless.append(places.map_with_index(partial(_make, source, own)))
    if len(endless) == 1:
        return endless[0]
    mixed = grain.MapDataset.mix(endless, weights=rates)
    return WindowShuffleMapDataset(mixed, window_size=SPREAD * batch, seed=int(seeds[0]))


def _make(source: Examples, seed: int, place: int, index: int) -> Example:
    return source.example(index, rng_for(seed, place // len(source), index))


def _pack(
    streams: Sequence[Sequential], length: int, position: list[int]
) -> Generator[tuple[Batch, list[int]]]:
    """Rows [B T], each of its own stream's examples in order, as many as fit."""
    last: dict[int, tuple[int, Example]] = {}  # what did not fit a row is its next one's first

    def example(row: int, place: int) -> Example:
        if row not in last or last[row][0] != place:
            last[row] = place, streams[row][place]
        return last[row][1]

    while True:
        filled, after = [], []
        for row, taken in enumerate(position):
            coming = (example(row, taken + k) for k in itertools.count())
            examples = take_fitting(coming, length)
            filled.append(fill_row(examples, length))
            after.append(taken + len(examples))
        position = after
        yield stack(filled), position


def _read_by_workers(
    workers: int, streams: Sequence[Sequential], length: int, position: list[int]
) -> Generator[tuple[Batch, list[int]]]:
    """What `_pack` gives, made by processes: worker w of W makes rows w, w + W, ...

    Their arrays come through shared memory. Positions travel with them, so that Grain's own state,
    which depends on the number of workers, is never needed.
    """
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():  # Grain 0.2.18 reads one of its own (its issue 1355)
        flags.FLAGS.mark_as_parsed()

    class Part(grain.DatasetIterator):
        def __init__(self, rows: slice) -> None:
            super().__init__()
            self._streams, self._position = streams[rows], position[rows]
            self._batches = _pack(self._streams, length, self._position)

        def __next__(self) -> Batch:
            batch, self._position = next(self._batches)
            return {**batch, "position": np.array(self._position)}

        def get_state(self) -> dict[str, Any]:
            return {"position": self._position}

        def set_state(self, state: dict[str, Any]) -> None:
            self._position = state["position"]
            self._batches = _pack(self._streams, length, self._position)

    class Parts(grain.IterDataset):
        _rows = slice(None)

        def set_slice(self, rows: slice, sequential_slice: bool = False) -> None:
            self._rows = rows

        def __iter__(self) -> grain.DatasetIterator:
            return Part(self._rows)

    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
    parts = iter(Parts().mp_prefetch(options, worker_init_fn=_end_with_parent))
    try:
        while True:
            batch = _interleave([next(parts) for _ in range(workers)])
            yield batch, batch.pop("position").tolist()
    finally:
        parts.close()


def _interleave(parts: Sequence[Batch]) -> Batch:
    """Row r of the batch is a row of part r % W."""
    count = sum(len(part["position"]) for part in parts)
    batch: Batch = {}
    for name, first in parts[0].items():
        batch[name] = np.empty((count, *first.shape[1:]), first.dtype)
        for number, part in enumerate(parts):
            batch[name][number :: len(parts)] = part[name]
    return batch


def _end_with_parent(worker: int, workers: int) -> None:
    """Ends this worker process as soon as the trainer is gone, killed or not."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _array_batches(
    groups: Sequence[Mapping[str, NDArray[Any]]],
    batch: int,
    seed: int,
    rows: Sequence[int] | None,
) -> Stream:
    counts: list[int] = []
    for arrays in groups:
        lengths = {len(array) for array in arrays.values()}
        if 0 in lengths:
            raise ValueError("data: there are no training images; check data.source and data.count")
        if len(lengths) > 1:
            raise ValueError(f"pairs of {sorted(lengths)} items: give as many texts as images")
        counts += lengths
    mine = np.arange(batch) if rows is None else np.array(rows)

    def pick(place: int) -> tuple[int, int]:
        """Group and number of an item."""
        turn, group = place, 0
        if others := len(groups) - 1:
            turn, is_other = divmod(place, 2)
            if is_other:
                turn, group = turn // others, 1 + turn % others
        epoch, index = divmod(turn, counts[group])
        return group, permutation(seed, epoch, counts[group])[index]

    def read(position: list[int]) -> Generator[tuple[Batch, list[int]]]:
        for start in itertools.count(position[0], batch):
            chosen = [pick(place) for place in (start + mine).tolist()]
            made = {
                name: np.stack([groups[group][name][index] for group, index in chosen])
                for name in groups[0]
            }
            yield made, [start + batch]

    return Stream(read)


@lru_cache(maxsize=16)
def permutation(seed: int, epoch: int, count: int) -> NDArray[Any]:
    """The order of one epoch of what fits in memory."""
    return np.random.default_rng((seed, epoch)).permutation(count)
