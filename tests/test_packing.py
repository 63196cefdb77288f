import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3leon_jax.config import Objective
from cm3leon_jax.tokens.document import Document, Image, Text
from cm3leon_jax.tokens.objective import code_places, restore, rng_for, rotate
from cm3leon_jax.tokens.packing import Batch, Example, fill_row, stack, take_fitting
from cm3leon_jax.tokens.vocabulary import Vocabulary

VOCABULARY = Vocabulary(specials=32, sentinels=20, text=30, images=10)


def make(*ids: int) -> Example:
    """Weights 0, 1, 2, ... and places 10, 11, 12, ..."""
    count = np.arange(len(ids))
    return Example(np.array(ids), count.astype(np.float32), 10 + count)


def pack(examples: list[Example], length: int) -> list[Batch]:
    """Rows until there are no examples left, each filled as the loader fills it."""
    rows = []
    while examples:
        taken = take_fitting(examples, length)
        rows.append(fill_row(taken, length))
        examples = examples[len(taken) :]
    return rows


def examples_of(row: dict[str, np.ndarray]) -> list[list[int]]:
    """The ids of every example in a row."""
    found = []
    for segment in range(1, row["segments"].max() + 1):
        inside = row["segments"] == segment
        found.append([*row["tokens"][inside][:1], *row["targets"][inside]])
    return found


def test_row_holds_shifted_examples_side_by_side():
    row = fill_row([make(1, 7, 8), make(1, 9)], length=5)
    assert {name: values.tolist() for name, values in row.items()} == {
        "tokens": [1, 7, 1, 0, 0],
        "targets": [7, 8, 9, 0, 0],
        "weights": [1, 2, 1, 0, 0],
        "segments": [1, 1, 2, 0, 0],
        "positions": [0, 1, 0, 0, 0],
        "codes_at": [10, 11, 10, -1, -1],
    }
    assert {name: str(values.dtype) for name, values in row.items()} == {
        "tokens": "int32",
        "targets": "int32",
        "weights": "float32",
        "segments": "int32",
        "positions": "int32",
        "codes_at": "int32",
    }


@given(st.lists(st.integers(2, 11), max_size=30), st.integers(10, 40))
def test_packing_keeps_every_example_whole_and_in_order(sizes, length):
    examples = [make(*range(size)) for size in sizes]
    rows = pack(examples, length)
    assert [ids for row in rows for ids in examples_of(row)] == [e.ids.tolist() for e in examples]
    for row, following in itertools.pairwise(rows):
        free = int((row["segments"] == 0).sum())
        assert free < int((following["segments"] == 1).sum())


def test_no_image_and_no_relocated_span_is_cut():
    document = Document([Text([1, 2, 3]), Image(range(10)), Image(range(10))])
    ids, length = document.to_ids(VOCABULARY), 64
    examples = []
    for index in range(100):
        rotated = rotate(ids, VOCABULARY, rng_for(0, 0, index), Objective(rate=4.0), length + 1)
        places = code_places(rotated, VOCABULARY)
        examples.append(Example(rotated, np.ones(len(rotated)), places))
    packed = [found for row in pack(examples, length) for found in examples_of(row)]
    assert len(packed) == 100
    assert all(restore(found, VOCABULARY).tolist() == ids.tolist() for found in packed)


def test_an_example_of_the_longest_rotation_fills_its_row():
    row = fill_row([make(*range(9))], length=8)
    assert row["segments"].tolist() == [1] * 8


def test_rows_stack_into_a_batch():
    batch = stack([fill_row([make(1, 2)], 4), fill_row([], 4)])
    assert {values.shape for values in batch.values()} == {(2, 4)}
    assert batch["segments"].tolist() == [[1, 0, 0, 0], [0, 0, 0, 0]]


def test_too_long_an_example_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match="1 examples take 8 places, row_length=7"):
        take_fitting([make(*range(9))], length=7)
    with pytest.raises(ValueError, match="2 examples take 4 places, row_length=3"):
        fill_row([make(1, 2, 3), make(1, 2, 3)], length=3)


def test_example_needs_a_weight_and_a_place_for_every_id():
    with pytest.raises(ValueError, match=r"ids \[3\], weights \[2\], codes_at \[3\]"):
        Example(np.arange(3), np.ones(2), np.arange(3))
    with pytest.raises(ValueError, match=r"codes_at \[4\]"):
        Example(np.arange(3), np.ones(3), np.arange(4))
    with pytest.raises(ValueError, match=r"ids \[2, 1\]"):
        Example(*[np.ones((2, 1))] * 3)
    with pytest.raises(ValueError, match=r"ids \[1\]"):
        make(1)
