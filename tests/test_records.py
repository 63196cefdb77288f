import json

import numpy as np
import pytest

from cm3leon_jax.data.records import Record, Skipped, is_held_out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": ""}, "id is empty"),
        ({"id": "\ud800"}, "surrogate"),
        ({"id": 7}, "id=7 is not text"),
        ({"segments": ()}, r"segments=\(\)"),
        ({"segments": ["x"]}, "tuple"),
        ({"segments": (" ",)}, r"segments\[0\] is empty"),
        ({"segments": (3,)}, "is a int"),
        ({"segments": (np.zeros((4, 4, 3)),)}, r"float64 \[4, 4, 3\]: an image array is uint8"),
        ({"segments": (np.zeros((0, 4, 3), np.uint8),)}, r"\[0, 4, 3\]"),
        ({"boxes": (("cat", (0, 0, 0, 5)),)}, r"boxes\[0\]"),
        ({"boxes": (("cat", (0, 0, float("inf"), 5)),)}, "0 <= x0 < x1"),
        ({"boxes": (("", (0, 0, 1, 5)),)}, r"the label of boxes\[0\] is empty"),
        ({"boxes": (("\ud83d", (0, 0, 1, 5)),)}, r"label of boxes\[0\]=.* surrogate"),
        ({"boxes": (("cat", (0, 0, 5)),)}, "x0, y0, x1, y1"),
        ({"question": "how many?"}, "come together"),
        ({"instruction": " "}, "instruction is empty"),
        ({"license": None}, "license=None"),
    ],
)
def test_a_wrong_record_is_refused_in_one_line(change, message):
    with pytest.raises(ValueError, match=message) as error:
        Record(**({"id": "a", "segments": ("a cat",)} | change))
    assert "\n" not in str(error.value)


def test_the_held_out_split_is_stable_and_has_its_size():
    ids = [f"record-{i}" for i in range(20_000)]
    held = {id for id in ids if is_held_out(id)}
    assert 0.045 < len(held) / len(ids) < 0.055
    assert held < {id for id in ids if is_held_out(id, 0.1)}  # a larger share only adds
    assert [id for id in ids[:60] if id in held] == [f"record-{i}" for i in (10, 18, 29, 59)]
    assert not any(is_held_out(id, 0) for id in ids[:99])
    assert all(is_held_out(id, 1) for id in ids[:99])
    with pytest.raises(ValueError, match="fraction=5"):
        is_held_out("a", 5)


# What is left out


def test_the_list_of_skipped_records_is_written_whole(tmp_path):
    skipped = Skipped(seen=2)
    skipped.add("a.jsonl:1", "no content")
    skipped.add("a.jsonl:2", "text is empty")
    skipped.write(tmp_path / "skipped.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["skipped.txt"]
    assert (tmp_path / "skipped.txt").read_text() == (
        "a.jsonl:1: no content\na.jsonl:2: text is empty\n"
    )


def test_a_list_with_names_that_are_no_unicode_is_written(tmp_path):
    skipped = Skipped(seen=1)
    skipped.add("caf\udce9.png", "no caption")  # how Python names a file in another encoding
    skipped.write(tmp_path / "skipped.txt")
    assert (tmp_path / "skipped.txt").read_text() == "caf\\udce9.png: no caption\n"


def test_what_parts_leave_out_is_summed_in_their_order():
    parts = [Skipped(seen=3), Skipped(), Skipped(seen=7)]
    parts[0].add("a:1", "broken")
    parts[2].add("b:9", "empty")
    parts[0].refused["CC-BY-NC"] += 2
    parts[2].refused.update({"CC-BY-NC": 1, "": 4})
    total = Skipped.from_dicts(json.loads(json.dumps(part.to_dict())) for part in parts)
    assert (total.seen, total.reasons) == (10, ["a:1: broken", "b:9: empty"])
    assert total.refused == {"CC-BY-NC": 3, "": 4}
    assert Skipped.from_dicts([]) == Skipped()


def test_a_refused_license_is_no_bad_record():
    skipped = Skipped(seen=100)
    skipped.refused["CC-BY-NC"] = 99
    skipped.check(0)
    skipped.add("a:1", "broken")
    with pytest.raises(ValueError, match=r"1 of 100 records are bad \(1.0%, limit 0.5%\): a:1"):
        skipped.check(0.005)
