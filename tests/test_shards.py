import contextlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3leon_jax.data.shards import Shards, TokenDocument, from_bytes, to_bytes, write_shards


def make(i: int) -> TokenDocument:
    rng = np.random.default_rng(i)
    ids = rng.integers(0, 2**32, 20 + i, dtype=np.uint32)
    embedding = rng.normal(size=8).astype(np.float16) if i % 2 else None
    return TokenDocument(f"id-{i}", ids, (("text", 1, 4), ("image", 6, 12)), "a.jsonl:7", embedding)


def assert_equal(a: TokenDocument, b: TokenDocument) -> None:
    assert (a.id, a.spans, a.source) == (b.id, b.spans, b.source)
    assert a.ids.dtype == b.ids.dtype == np.uint32
    np.testing.assert_array_equal(a.ids, b.ids)
    assert (a.embedding is None) == (b.embedding is None)
    if a.embedding is not None:
        assert b.embedding.dtype == np.float16
        np.testing.assert_array_equal(a.embedding, b.embedding)


@given(
    id=st.text(min_size=1, max_size=20),
    source=st.text(max_size=20),
    ids=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50),
    embedding=st.none() | st.lists(st.floats(width=16, allow_nan=False), min_size=1, max_size=9),
    image=st.booleans(),
)
def test_bytes_give_the_document_back(id, source, ids, embedding, image):
    document = TokenDocument(
        id,
        np.array(ids, np.uint32),
        (("image" if image else "text", len(ids) - 1, 1),),
        source,
        None if embedding is None else np.array(embedding, np.float16),
    )
    assert_equal(from_bytes(to_bytes(document)), document)


def test_layout_of_version_1_does_not_change():
    document = TokenDocument(
        "a", np.array([1, 258], np.uint32), (("image", 0, 2),), "s", np.array([1], np.float16)
    )
    assert to_bytes(document).hex() == (
        "01" "0100" "0100" "02000000" "0100" "0100"  # version and counts
        "61" "73" "01000000" "02010000" "01" "00000000" "02000000" "003c"
    )  # fmt: skip


@given(data=st.binary(max_size=200))
@settings(max_examples=300)
def test_no_bytes_do_anything_worse_than_value_error(data):
    for candidate in (data, b"\x01" + data):
        with contextlib.suppress(ValueError):
            assert from_bytes(candidate).id


def test_every_cut_of_a_document_is_refused():
    data = to_bytes(make(1))
    for end in range(len(data)):
        with pytest.raises(ValueError, match="prepare"):
            from_bytes(data[:end])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": np.zeros(3, np.int32)}, "ids is int32"),
        ({"ids": np.zeros(0, np.uint32)}, "ids is uint32"),
        ({"embedding": np.zeros(3, np.float32)}, "embedding is float32"),
        ({"spans": (("text", 0, 21),)}, "span .* of 20 ids"),
        ({"spans": (("text", 0, 4), ("text", 3, 1))}, "after 4"),
        ({"spans": (("sound", 0, 4),)}, "text or image"),
        ({"id": ""}, "id is empty"),
    ],
)
def test_wrong_documents_are_refused(change, message):
    fields = {"id": "a", "ids": np.zeros(20, np.uint32), "spans": ()} | change
    with pytest.raises(ValueError, match=message):
        TokenDocument(**fields)


def test_one_shard_keeps_the_order(tmp_path):
    write_shards(map(make, range(30)), tmp_path, "train")
    shards = Shards(tmp_path, "train")
    assert len(shards) == 30
    for i in (29, 0, 17, -1):
        assert_equal(shards[i], make(i % 30))


@pytest.mark.parametrize("count", [3, 7, 40])
def test_several_shards_hold_every_document_once(tmp_path, count):
    write_shards(map(make, range(30)), tmp_path, "train", shards=count)
    shards = Shards(tmp_path, "train")
    assert len(shards.parts) == count
    assert sorted(shards[i].id for i in range(len(shards))) == sorted(f"id-{i}" for i in range(30))


def test_index_out_of_range_ends_iteration(tmp_path):
    write_shards(map(make, range(3)), tmp_path, "train", shards=2)
    shards = Shards(tmp_path, "train")
    assert len(list(shards)) == 3
    with pytest.raises(IndexError, match="document 3 of 3"):
        shards[3]


def test_an_empty_set_has_length_zero(tmp_path):
    write_shards([], tmp_path, "train")
    assert len(Shards(tmp_path, "train")) == 0


def test_opened_shards_survive_pickling(tmp_path):
    write_shards(map(make, range(3)), tmp_path, "train")
    shards = Shards(tmp_path, "train")
    assert shards[1].id == "id-1"
    assert_equal(pickle.loads(pickle.dumps(shards))[2], make(2))


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    def broken():
        yield make(0)
        raise OSError("source went away")

    with pytest.raises(OSError, match="source went away"):
        write_shards(broken(), tmp_path, "train", shards=2)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError, match="not finished"):
        Shards(tmp_path, "train")


def test_a_failed_rewrite_keeps_the_earlier_set(tmp_path):
    write_shards([make(5)], tmp_path, "train")
    with pytest.raises(AttributeError):
        write_shards([make(0), None], tmp_path, "train")
    assert_equal(Shards(tmp_path, "train")[0], make(5))


def test_a_rewrite_broken_between_two_renames_is_refused(tmp_path, monkeypatch):
    write_shards(map(make, range(4)), tmp_path, "train", shards=2)
    replace = Path.replace

    def fail_at_the_second(self, target):
        if "00001" in self.name:
            raise OSError("disk went away")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail_at_the_second)
    with pytest.raises(OSError, match="disk went away"):
        write_shards(map(make, range(4, 8)), tmp_path, "train", shards=2)
    with pytest.raises(FileNotFoundError, match="not finished"):
        Shards(tmp_path, "train")


def test_two_sets_share_a_folder(tmp_path):
    write_shards([make(1)], tmp_path, "train")
    write_shards([make(2), make(3)], tmp_path, "held_out")
    assert [len(Shards(tmp_path, name)) for name in ("train", "held_out")] == [1, 2]


def test_a_set_without_its_index_is_refused(tmp_path):
    write_shards([make(1)], tmp_path, "train").unlink()
    with pytest.raises(FileNotFoundError, match=r"train.index.json is missing"):
        Shards(tmp_path, "train")


def test_missing_and_truncated_parts_are_named(tmp_path):
    write_shards(map(make, range(9)), tmp_path, "train", shards=3)
    part = tmp_path / "train-00001-of-00003.array_record"
    data = part.read_bytes()
    part.write_bytes(data[:-10])
    with pytest.raises(ValueError, match=r"train-00001-of-00003.* truncated"):
        Shards(tmp_path, "train")
    part.unlink()
    with pytest.raises(FileNotFoundError, match=r"train-00001-of-00003.* missing"):
        Shards(tmp_path, "train")


def test_a_damaged_record_is_named(tmp_path):
    write_shards(map(make, range(9)), tmp_path, "train")
    shards = Shards(tmp_path, "train")
    (part,) = shards.parts
    data = part.read_bytes()
    # The documents lie in the middle of the file; blank them all.
    part.write_bytes(data[:200] + bytes(len(data) - 400) + data[-200:])
    with pytest.raises(ValueError, match=r"train-00000-of-00001.array_record"):
        [shards[i] for i in range(9)]


def test_a_record_that_is_no_document_is_named(tmp_path):
    from array_record.python.array_record_module import ArrayRecordWriter

    index = write_shards([make(0)], tmp_path, "train")
    part = tmp_path / "train-00000-of-00001.array_record"
    writer = ArrayRecordWriter(str(part), "group_size:1")
    writer.write(b"\x07 not ours")
    writer.close()
    entry = json.loads(index.read_text())
    entry["parts"][0]["bytes"] = part.stat().st_size
    index.write_text(json.dumps(entry))
    with pytest.raises(
        ValueError, match=r"array_record, record 0: not a token document of version"
    ):
        Shards(tmp_path, "train")[0]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"version": 1, "parts": [{}]}'])
def test_a_broken_index_is_refused(tmp_path, text):
    (tmp_path / "train.index.json").write_text(text)
    with pytest.raises(ValueError, match="not an index"):
        Shards(tmp_path, "train")


def test_zero_shards_are_refused(tmp_path):
    with pytest.raises(ValueError, match="shards=0"):
        write_shards([], tmp_path, "train", shards=0)
