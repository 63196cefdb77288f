import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3leon_jax import mapped
from cm3leon_jax.mapped import Mapped, finish_mapped, part_path, write_mapped_part

NEIGHBOUR = np.dtype([("row", "<i8"), ("score", "<f2"), ("by", "u1")])


def make(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, 3, 4)).astype(np.float16)


def write(folder, arrays, meta=None):
    for number, array in enumerate(arrays):
        write_mapped_part(folder, "v", number, len(arrays), array)
    finish_mapped(folder, "v", len(arrays), meta or {})
    return Mapped(folder, "v")


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A set whose first, third, fourth and last parts are empty, and its rows as one array."""
    arrays = [make(rows, rows) for rows in (0, 5, 0, 0, 1, 7, 0)]
    return write(tmp_path_factory.mktemp("set"), arrays), np.concatenate(arrays)


@given(st.slices(13))
def test_slices_equal_those_of_one_array(opened, rows):
    found = opened[0][rows]
    np.testing.assert_array_equal(found, opened[1][rows])
    assert found.dtype == np.float16


@given(st.lists(st.integers(0, 12), max_size=20))
def test_numbers_in_any_order_equal_those_of_one_array(opened, rows):
    np.testing.assert_array_equal(opened[0][rows], opened[1][np.array(rows, int)])


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64])
def test_numbers_may_have_any_shape_and_width(opened, dtype):
    rows = np.array([[0, 12, 5], [6, 4, 4]], dtype)
    np.testing.assert_array_equal(opened[0][rows], opened[1][rows])
    np.testing.assert_array_equal(opened[0][6], opened[1][6])


def test_length_shape_and_bounds_are_those_of_the_parts(opened):
    found, array = opened
    assert (len(found), found.shape, found.dtype) == (13, array.shape, array.dtype)
    assert found.bounds == [(0, 0), (0, 5), (5, 5), (5, 5), (5, 6), (6, 13), (13, 13)]
    for (start, stop), rows in zip(found.bounds, (0, 5, 0, 0, 1, 7, 0)):
        np.testing.assert_array_equal(found[start:stop], make(rows, rows))


def test_rows_are_a_copy(tmp_path):
    found = write(tmp_path, [make(3)])
    found[:][:] = 0
    np.testing.assert_array_equal(found[:], make(3))


@pytest.mark.parametrize("rows", [[13], [0, -1], 13, np.array([[99]])])
def test_numbers_outside_are_refused(opened, rows):
    with pytest.raises(IndexError, match="of 13"):
        opened[0][rows]


@pytest.mark.parametrize("rows", [[True] * 13, [1.0]])
def test_masks_and_fractions_are_refused(opened, rows):
    with pytest.raises(ValueError, match="give a slice or whole numbers"):
        opened[0][rows]


def test_fields_of_a_structured_dtype_come_back(tmp_path):
    array = np.zeros((5, 4), NEIGHBOUR)
    array["row"], array["score"], array["by"] = -1, 0.5, np.arange(4)
    found = write(tmp_path, [array[:2], array[2:]])
    assert found.dtype == NEIGHBOUR
    np.testing.assert_array_equal(found[[4, 0]], array[[4, 0]])
    assert found[1:3]["by"].tolist() == [[0, 1, 2, 3]] * 2


def test_an_empty_set_keeps_its_form(tmp_path):
    found = write(tmp_path, [make(0)])
    assert (found.shape, found[:].shape, found[[]].shape) == ((0, 3, 4),) * 3


def test_what_a_set_was_made_with_comes_back(tmp_path):
    assert write(tmp_path, [make(1)], {"retriever": "ab12"}).meta == {"retriever": "ab12"}


def test_a_pickled_set_is_its_place(tmp_path):
    found = write(tmp_path, [make(2000)])
    np.testing.assert_array_equal(found[1:2], make(2000)[1:2])
    data = pickle.dumps(found)
    assert len(data) < 500
    np.testing.assert_array_equal(pickle.loads(data)[:], make(2000))


def test_more_parts_than_stay_mapped_are_readable(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped, "MAPPED", 3)
    found = write(tmp_path, [make(2, seed) for seed in range(8)])
    np.testing.assert_array_equal(found[:], np.concatenate([make(2, seed) for seed in range(8)]))
    assert found._part.cache_info().currsize == 3


def test_a_set_that_was_not_finished_is_refused(tmp_path):
    write_mapped_part(tmp_path, "v", 0, 2, make(2))
    with pytest.raises(FileNotFoundError, match=r"v.json is missing: the set 'v' was not finished"):
        Mapped(tmp_path, "v")
    with pytest.raises(FileNotFoundError, match="v-00001-of-00002"):
        finish_mapped(tmp_path, "v", 2, {})


def test_a_set_is_unfinished_once_a_part_of_it_is_another(tmp_path):
    write(tmp_path, [make(2), make(3)])
    write_mapped_part(tmp_path, "v", 1, 2, make(3, seed=1))
    with pytest.raises(FileNotFoundError, match="not finished"):
        Mapped(tmp_path, "v")


def test_missing_and_truncated_parts_are_named(tmp_path):
    write(tmp_path, [make(2), make(3)])
    part = part_path(tmp_path, "v", 1, 2)
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"v-00001-of-00002.npy .* truncated"):
        Mapped(tmp_path, "v")
    with pytest.raises(ValueError, match=r"v-00001-of-00002.npy is not whole"):
        finish_mapped(tmp_path, "v", 2, {})
    part.unlink()
    with pytest.raises(FileNotFoundError, match=r"v-00001-of-00002.npy is missing"):
        Mapped(tmp_path, "v")


def test_a_part_that_was_overwritten_is_named_when_it_is_read(tmp_path):
    write(tmp_path, [make(2), make(3)])
    part = part_path(tmp_path, "v", 1, 2)
    part.write_bytes(b"\x00" * part.stat().st_size)
    found = Mapped(tmp_path, "v")
    np.testing.assert_array_equal(found[:2], make(2))
    with pytest.raises(ValueError, match=r"v-00001-of-00002.npy is not whole"):
        found[2:]


def test_a_part_that_was_cut_while_written_never_replaces_a_whole_one(tmp_path, monkeypatch):
    write(tmp_path, [make(2)])

    def write_half(stream, array, **_):
        stream.write(b"half")
        raise OSError("disk is full")

    monkeypatch.setattr(np, "save", write_half)
    with pytest.raises(OSError, match="disk is full"):
        write_mapped_part(tmp_path, "v", 0, 1, make(9))
    np.testing.assert_array_equal(Mapped(tmp_path, "v")[:], make(2))
    assert {path.name for path in tmp_path.iterdir()} == {"v.json", "v-00000-of-00001.npy"}


@pytest.mark.parametrize("array", [np.array([None, "a"]), np.float32(1)])
def test_what_is_no_rows_of_numbers_is_refused(tmp_path, array):
    with pytest.raises(ValueError, match="give rows of numbers"):
        write_mapped_part(tmp_path, "v", 0, 1, array)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("other", "form"),
    [(make(1).astype(np.float32), r"float32 \[3, 4\]"), (make(1)[:, :2], r"float16 \[2, 4\]")],
    ids=["dtype", "shape"],
)
def test_parts_of_different_forms_are_refused(tmp_path, other, form):
    for number, array in enumerate((make(1), other)):
        write_mapped_part(tmp_path, "v", number, 2, array)
    message = (
        rf"v-00001-of-00002.npy has rows {form}, the first part float16 \[3, 4\]: write one form"
    )
    with pytest.raises(ValueError, match=message):
        finish_mapped(tmp_path, "v", 2, {})


def test_a_set_of_no_parts_is_refused(tmp_path):
    with pytest.raises(ValueError, match="of 0 parts"):
        finish_mapped(tmp_path, "v", 0, {})


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"meta": {}, "parts": []}', '{"meta": {}, "parts": [{"rows": 1}]}']
)
def test_a_broken_index_is_refused(tmp_path, text):
    (tmp_path / "v.json").write_text(text)
    with pytest.raises(ValueError, match=r"v.json is not an index"):
        Mapped(tmp_path, "v")
