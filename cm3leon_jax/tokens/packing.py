"""Several examples in one row, side by side but unseen by one another.

A row holds whole examples: none is ever split, so no image and no relocated span is ever cut.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

Batch = dict[str, NDArray[np.generic]]
INTEGERS = ("tokens", "targets", "segments", "positions", "codes_at")


@dataclass(frozen=True, eq=False)
class Example:
    """One (rotated) document: ids [n], each id's loss weight as a target [n], `code_places` [n]."""

    ids: NDArray[np.integer]
    weights: NDArray[np.floating]
    codes_at: NDArray[np.integer]

    def __post_init__(self) -> None:
        shapes = {name: array.shape for name, array in vars(self).items()}
        if shapes != dict.fromkeys(shapes, (max(self.ids.size, 2),)):
            told = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
            raise ValueError(f"Example of {told}: use three arrays of one length, at least 2")

    @property
    def size(self) -> int:
        """Places it takes in a row: every id but the last is read, every id but the first told."""
        return len(self.ids) - 1


def take_fitting(examples: Iterable[Example], length: int) -> list[Example]:
    """The examples of the next row: in order, up to the first that does not fit any more.

    Raises ValueError when not even the first one fits.
    """
    taken: list[Example] = []
    room = length
    for example in examples:
        if example.size > room:
            if not taken:
                _refuse([example], length)
            break
        taken.append(example)
        room -= example.size
    return taken


def fill_row(examples: Sequence[Example], length: int) -> Batch:
    """One row: tokens targets segments positions codes_at int32 [T], weights float32 [T].

    Targets are the next ids of the same example. Segments count from 1, 0 is padding; positions
    restart in each example; codes_at is a code's place in its image, -1 elsewhere; padding has
    weight 0. More than `length` places raise ValueError.
    """
    if sum(example.size for example in examples) > length:
        _refuse(examples, length)
    row: Batch = {name: np.zeros(length, np.int32) for name in INTEGERS}
    row["weights"] = np.zeros(length, np.float32)
    row["codes_at"][:] = -1
    start = 0
    for segment, example in enumerate(examples, start=1):
        place = slice(start, start + example.size)
        row["tokens"][place] = example.ids[:-1]
        row["targets"][place] = example.ids[1:]
        row["weights"][place] = example.weights[1:]
        row["segments"][place] = segment
        row["positions"][place] = np.arange(example.size)
        row["codes_at"][place] = example.codes_at[:-1]
        start += example.size
    return row


def stack(rows: Sequence[Batch]) -> Batch:
    """A batch of rows: the same keys, [B, T]."""
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _refuse(examples: Sequence[Example], length: int) -> NoReturn:
    used = sum(example.size for example in examples)
    rule = "use longer rows or a smaller max_length for each example"
    raise ValueError(f"{len(examples)} examples take {used} places, row_length={length}: {rule}")
