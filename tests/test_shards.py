import contextlib
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3leon_jax.data import shards as shards_module
from cm3leon_jax.data.shards import (
    FIELDS,
    CodedRecord,
    Shards,
    finish_shards,
    from_bytes,
    to_bytes,
    write_part,
    write_shards,
)

ROOT = Path(__file__).resolve().parents[1]


def make(i: int) -> CodedRecord:
    codes = np.random.default_rng(i).integers(0, 8192, 16, dtype=np.int32)
    return CodedRecord(f"id-{i}", (f"a caption {i}", codes), license="CC0-1.0")


def write_parts(folder: Path, *parts: list[CodedRecord]) -> None:
    for number, records in enumerate(parts):
        write_part(records, folder, "train", number, len(parts))
    finish_shards(folder, "train", [len(records) for records in parts])


def assert_equal(a: CodedRecord, b: CodedRecord) -> None:
    for field in (f.name for f in FIELDS):
        assert getattr(a, field) == getattr(b, field), field
    assert a.texts == b.texts
    assert [type(part) for part in a.segments] == [type(part) for part in b.segments]
    for ours, theirs in zip(a.images, b.images, strict=True):
        assert ours.dtype == theirs.dtype == np.int32
        np.testing.assert_array_equal(ours, theirs)


images = st.lists(st.integers(0, 2**31 - 1) | st.integers(0, 2**16 - 1), min_size=1, max_size=9)
optional = st.none() | st.text(max_size=20)
corner = st.floats(allow_nan=False)


@given(
    id=st.text(min_size=1, max_size=20),
    segments=st.lists(
        st.text(max_size=20) | images.map(lambda codes: np.array(codes, np.int32)),
        min_size=1,
        max_size=5,
    ).map(tuple),
    boxes=st.lists(st.tuples(st.text(max_size=9), st.tuples(*[corner] * 4)), max_size=3).map(tuple),
    question=optional,
    answer=optional,
    answers=st.lists(st.text(max_size=9), max_size=3).map(tuple),
    instruction=optional,
    license=st.text(max_size=9),
    source_url=st.text(max_size=9),
)
def test_bytes_give_the_record_back(**fields):
    record = CodedRecord(**fields)
    assert_equal(from_bytes(to_bytes(record)), record)


@pytest.mark.parametrize(
    ("code", "size", "written"),
    [(65535, "02", "ffff"), (65536, "04", "00000100")],
)
def test_layout_of_version_2_does_not_change(code, size, written):
    record = CodedRecord("ä", (np.array([code], np.int32), "b"), (("c", (0.5, 1, 2, 3)),))
    text = '{"id": "ä", "boxes": [["c", [0.5, 1, 2, 3]]], "segments": [1, "b"]}'.encode()
    assert to_bytes(record).hex() == "02" + size + f"{len(text):02x}000000" + text.hex() + written


@given(data=st.binary(max_size=200))
@settings(max_examples=300)
def test_no_bytes_do_anything_worse_than_value_error(data):
    for candidate in (data, b"\x02" + data):
        with contextlib.suppress(ValueError):
            assert from_bytes(candidate).id


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(
    content=st.dictionaries(
        st.sampled_from(["id", "segments", "boxes", "license"]), json_values | st.text(min_size=1)
    )
    | json_values,
    codes=st.binary(max_size=8),
    size=st.integers(0, 255),
)
@settings(max_examples=300)
def test_no_json_does_anything_worse_than_value_error(content, codes, size):
    text = json.dumps(content).encode()
    with contextlib.suppress(ValueError):
        record = from_bytes(shards_module.HEADER.pack(2, size, len(text)) + text + codes)
        assert record.id
        assert record.segments


@pytest.mark.parametrize(
    ("segments", "count"),
    [([None, None], 0), ([2], 3), ([3], 2), ([-1, 4], 3), ([0, 3], 3), ([3.0], 3), (["a", []], 0)],
)
def test_lengths_that_the_codes_do_not_have_are_refused(segments, count):
    text = json.dumps({"id": "a", "segments": segments}).encode()
    with pytest.raises(ValueError, match=r"a damaged record .* prepare the data again"):
        from_bytes(shards_module.HEADER.pack(2, 2, len(text)) + text + bytes(2 * count))


def test_every_cut_of_a_record_is_refused():
    data = to_bytes(make(1))
    for end in range(len(data)):
        with pytest.raises(ValueError, match="prepare"):
            from_bytes(data[:end])


def test_a_record_of_the_earlier_version_is_refused():
    with pytest.raises(ValueError, match="not a prepared record of version 2"):
        from_bytes(b"\x01" + to_bytes(make(1))[1:])


CODES = np.zeros(4, np.int32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": ""}, "give an id"),
        ({"id": 7}, "give an id"),
        ({"segments": ()}, "one segment or more"),
        ({"segments": (None,)}, "a segment is NoneType"),
        ({"segments": ([1, 2],)}, "a segment is list"),
        ({"segments": (CODES.astype(np.int64),)}, r"codes are int64 \[4\]: give int32"),
        ({"segments": (CODES.reshape(2, 2),)}, r"codes are int32 \[2, 2\]"),
        ({"segments": (CODES[:0],)}, r"codes are int32 \[0\]"),
        ({"segments": (CODES - 1,)}, "a code is -1"),
    ],
)
def test_wrong_records_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        CodedRecord(**({"id": "a", "segments": ("text", CODES)} | change))


def test_texts_and_images_are_the_segments_in_order():
    record = CodedRecord("a", ("one", CODES, "two", CODES + 1))
    assert record.texts == ["one", "two"]
    assert [codes[0] for codes in record.images] == [0, 1]


def test_one_part_keeps_the_order(tmp_path):
    write_shards([make(i) for i in range(30)], tmp_path, "train", {"image_tokenizer": "ab12"})
    shards = Shards(tmp_path, "train")
    assert len(shards) == 30
    assert shards.made_by == {"image_tokenizer": "ab12"}
    for i in (29, 0, 17, -1, np.int64(3)):
        assert_equal(shards[i], make(i % 30))


def test_several_parts_stand_one_behind_the_other(tmp_path):
    records = [make(i) for i in range(9)]
    write_parts(tmp_path, records[:2], [], records[2:8], records[8:], [])
    shards = Shards(tmp_path, "train")
    assert len(shards.parts) == 5
    assert [shards[i].id for i in range(len(shards))] == [record.id for record in records]


def test_index_out_of_range_ends_iteration(tmp_path):
    write_parts(tmp_path, [make(0)], [make(1), make(2)])
    shards = Shards(tmp_path, "train")
    assert len(list(shards)) == 3
    for index in (3, -4):
        with pytest.raises(IndexError, match=f"document {index} of 3"):
            shards[index]


def test_an_empty_set_has_length_zero(tmp_path):
    write_shards([], tmp_path, "train")
    shards = Shards(tmp_path, "train")
    assert len(shards) == 0
    with pytest.raises(IndexError, match="document 0 of 0"):
        shards[0]


def test_opened_shards_survive_pickling(tmp_path):
    write_shards([make(i) for i in range(3)], tmp_path, "train")
    shards = Shards(tmp_path, "train")
    assert shards[1].id == "id-1"
    assert_equal(pickle.loads(pickle.dumps(shards))[2], make(2))


def test_more_parts_than_stay_open_are_readable(tmp_path, monkeypatch):
    monkeypatch.setattr(shards_module, "OPENED", 3)
    write_parts(tmp_path, *([make(i)] for i in range(8)))
    shards = Shards(tmp_path, "train")
    for i in (*range(8), 0, 7, 3):
        assert_equal(shards[i], make(i))
    assert shards._open.cache_info().currsize == 3


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    def broken():
        yield make(0)
        raise OSError("source went away")

    with pytest.raises(OSError, match="source went away"):
        write_part(broken(), tmp_path, "train", 0, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_leaves_no_set_and_no_part(tmp_path):
    code = """
import os, sys
from pathlib import Path
from cm3leon_jax.data.shards import CodedRecord, write_shards

class Killed(list):
    def __iter__(self):
        yield from [CodedRecord("a", ("text",))] * 1000
        os.kill(os.getpid(), 9)

write_shards(Killed(), Path(sys.argv[1]), "train")
"""
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT).returncode == -9
    assert list(tmp_path.glob("train*")) == []
    with pytest.raises(FileNotFoundError, match="not finished"):
        Shards(tmp_path, "train")
    write_shards([make(1)], tmp_path, "train")  # what the killed one left is in nobody's way
    assert_equal(Shards(tmp_path, "train")[0], make(1))


def test_a_set_with_a_part_that_was_never_written_does_not_finish(tmp_path):
    write_part([make(0)], tmp_path, "train", 1, 2)
    with pytest.raises(FileNotFoundError, match="train-00000-of-00002"):
        finish_shards(tmp_path, "train", [1, 1])
    with pytest.raises(FileNotFoundError, match="'train' was not finished"):
        Shards(tmp_path, "train")


def test_a_failed_rewrite_keeps_the_earlier_set(tmp_path):
    write_shards([make(5)], tmp_path, "train")
    with pytest.raises(AttributeError):
        write_shards([make(0), None], tmp_path, "train")
    assert_equal(Shards(tmp_path, "train")[0], make(5))


def test_a_set_is_unfinished_once_a_part_of_it_is_another(tmp_path):
    write_parts(tmp_path, [make(0)], [make(1)])
    write_part([make(2)], tmp_path, "train", 1, 2)
    with pytest.raises(FileNotFoundError, match="not finished"):
        Shards(tmp_path, "train")


def test_two_sets_share_a_folder(tmp_path):
    write_shards([make(1)], tmp_path, "train")
    write_shards([make(2), make(3)], tmp_path, "held_out")
    assert [len(Shards(tmp_path, name)) for name in ("train", "held_out")] == [1, 2]


def test_a_moved_set_opens(tmp_path):
    write_shards([make(1)], tmp_path / "here", "train")
    (tmp_path / "here").rename(tmp_path / "there")
    assert_equal(Shards(tmp_path / "there", "train")[0], make(1))


def test_missing_and_truncated_parts_are_named(tmp_path):
    write_parts(tmp_path, *([make(i)] for i in range(3)))
    part = tmp_path / "train-00001-of-00003.array_record"
    data = part.read_bytes()
    part.write_bytes(data[:-10])
    with pytest.raises(ValueError, match=r"train-00001-of-00003.* truncated"):
        Shards(tmp_path, "train")
    part.unlink()
    with pytest.raises(FileNotFoundError, match=r"train-00001-of-00003.* missing"):
        Shards(tmp_path, "train")


def test_a_damaged_record_is_named(tmp_path):
    write_shards([make(i) for i in range(9)], tmp_path, "train")
    shards = Shards(tmp_path, "train")
    (part,) = shards.parts
    data = part.read_bytes()
    # The records lie in the middle of the file; blank them all.
    part.write_bytes(data[:200] + bytes(len(data) - 400) + data[-200:])
    with pytest.raises(ValueError, match=r"train-00000-of-00001.array_record"):
        [shards[i] for i in range(9)]


def test_something_that_is_no_record_is_named(tmp_path):
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(tmp_path / "train-00000-of-00001.array_record"), "group_size:1")
    writer.write(b"\x07 not ours")
    writer.close()
    finish_shards(tmp_path, "train", [1])
    with pytest.raises(ValueError, match=r"array_record, record 0: not a prepared record"):
        Shards(tmp_path, "train")[0]


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "\x80", '{"version": 2, "made_by": {}, "parts": [{}]}',
     '{"version": 2, "made_by": {}, "parts": [{"documents": "x", "bytes": 1}]}'],
)  # fmt: skip
def test_a_broken_index_is_refused(tmp_path, text):
    (tmp_path / "train.index.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"train.index.json is not an index"):
        Shards(tmp_path, "train")


def test_an_index_of_another_version_is_refused(tmp_path):
    write_shards([make(0)], tmp_path, "train")
    index = tmp_path / "train.index.json"
    parts = json.loads(index.read_text())["parts"]
    index.write_text(json.dumps({"version": 1, "parts": parts}))
    with pytest.raises(ValueError, match=r"has version 1, known is 2: prepare it again"):
        Shards(tmp_path, "train")
