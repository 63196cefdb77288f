import json

import numpy as np
import pytest

from cm3leon_jax.data.pictures import to_png
from cm3leon_jax.data.sources import Record, Skipped, is_held_out, read_folder

PICTURE = to_png(np.zeros((4, 4, 3), np.uint8))

# Records


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
        ({"boxes": (("", (0, 0, 1, 5)),)}, "label"),
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


# Folders


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "data"
    (root / "cats").mkdir(parents=True)
    for name in ("1.png", "2.png"):
        (root / "cats" / name).write_bytes(PICTURE)
    return root


def write_lines(root, *entries, name="captions.jsonl"):
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    (root / name).write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogateescape")


def read(root, max_bad_fraction=1.0):
    skipped = Skipped()
    return list(read_folder(root, skipped, max_bad_fraction)), skipped


def test_both_forms_of_a_line_give_a_record(folder):
    write_lines(
        folder,
        {"image": "cats/1.png", "caption": " a cat\n", "license": "CC0", "source_url": "http://a"},
        "",
        {
            "id": "two",
            "segments": [{"text": "before"}, {"image": "cats/2.png"}, {"text": "after"}],
            "boxes": [["cat", [1, 2, 3.5, 4]]],
            "question": "what?",
            "answer": "a cat",
        },
        {
            "segments": [{"image": "cats/1.png"}, {"image": "cats/2.png"}],
            "instruction": "swap the cat",
        },
    )
    (one, two, three), skipped = read(folder)
    assert skipped.reasons == []
    assert sorted(map(str, one.segments)) == sorted([str(folder / "cats/1.png"), "a cat"])
    assert (one.license, one.source_url, one.origin) == ("CC0", "http://a", "captions.jsonl:1")
    assert two.segments == ("before", folder / "cats/2.png", "after")
    assert (two.id, two.boxes, two.origin) == (
        "two",
        (("cat", (1, 2, 3.5, 4)),),
        "captions.jsonl:3",
    )
    assert (two.question, two.answer) == ("what?", "a cat")
    assert three.instruction == "swap the cat"
    assert [record.id for record in read(folder / "captions.jsonl")[0]] == [one.id, "two", three.id]


def test_the_short_form_puts_the_text_first(folder):
    write_lines(folder, {"image": "cats/1.png", "text": "a cat"})
    assert read(folder)[0][0].segments == ("a cat", folder / "cats/1.png")


def test_a_byte_order_mark_is_no_part_of_the_first_line(folder):
    (folder / "captions.jsonl").write_text('{"text": "a cat"}', encoding="utf-8-sig")
    assert read(folder)[0][0].segments == ("a cat",)


def test_an_unnamed_record_keeps_its_id_when_lines_move(folder):
    lines = [{"text": f"text {i}"} for i in range(5)]
    write_lines(folder, *lines)
    ids = {record.segments: record.id for record in read(folder)[0]}
    write_lines(folder, *reversed(lines))
    assert {record.segments: record.id for record in read(folder)[0]} == ids
    assert len(set(ids.values())) == 5


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ('{"text": "a', "broken JSON"),
        ("[" * 100_000, "broken JSON"),
        ('{"text": "caf\udce9"}', "not UTF-8"),
        ("[1]", "a record is a JSON object, not list"),
        ({}, "no content"),
        ({"text": "  "}, "text is empty"),
        ({"text": 5}, "text=5 is not text"),
        ({"text": None}, "text=None is not text"),
        ({"text": "\ud800"}, "surrogate"),
        ({"id": "", "text": "a"}, "id is empty"),
        ({"id": None, "text": "a"}, "id=None is not text"),
        ({"text": "a", "caption": "b"}, "one field"),
        ({"text": "a", "segments": [{"text": "b"}]}, "exclude one another"),
        ({"segments": []}, "segments is empty or not a list"),
        ({"segments": {"text": "b"}}, "segments is empty or not a list"),
        ({"segments": ["b"]}, "segment 'b'"),
        ({"segments": [{"text": "b", "image": "cats/1.png"}]}, "segment"),
        ({"image": "cats/1.png"}, "no caption"),
        ({"image": 5, "text": "a"}, "segment {'image': 5}"),
        ({"image": "cats/9.png", "text": "a"}, "image 'cats/9.png' is missing"),
        ({"image": "cats", "text": "a"}, "not a readable file"),
        ({"image": "a\0b", "text": "a"}, "is missing"),
        ({"image": "a" * 5000, "text": "a"}, "is missing"),
        ({"image": "/etc/hostname", "text": "a"}, "leaves the folder"),
        ({"image": "cats/../../x.png", "text": "a"}, "leaves the folder"),
        ({"text": "a", "boxs": []}, "unknown field 'boxs': did you mean 'boxes'?"),
        ({"text": "a", "zzz": []}, "unknown field 'zzz': known are id, segments"),
        ({"text": "a", "boxes": 5}, "boxes=5 is not a list"),
        ({"text": "a", "boxes": [["cat", [0, 0, 1]]]}, "boxes[0]"),
        ({"text": "a", "boxes": [["cat", [0, 0, 1, 10**400]], 7]}, "boxes[1]"),
        ({"text": "a", "question": "b"}, "come together"),
        ({"text": "a", "license": 5}, "license=5"),
        ({"id": "good", "text": "b"}, "duplicate id 'good'"),
    ],
)
def test_a_bad_line_is_skipped_and_listed_with_its_number(folder, entry, reason):
    write_lines(folder, {"id": "good", "text": "a"}, entry, {"id": "last", "text": "z"})
    records, skipped = read(folder)
    assert [record.id for record in records] == ["good", "last"]
    assert skipped.seen == 3
    (line,) = skipped.reasons
    assert line.startswith("captions.jsonl:2: ")
    assert reason in line
    assert "\n" not in line


def test_links_out_of_the_folder_and_empty_files_are_skipped(folder, tmp_path):
    (tmp_path / "secret.png").write_bytes(PICTURE)
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "inside.png").symlink_to(folder / "cats/1.png")
    (folder / "zero.png").touch()
    names = ["link.png", "loop.png", "zero.png", "inside.png"]
    write_lines(folder, *({"image": name, "text": name} for name in names))
    records, skipped = read(folder)
    assert [record.segments[0] for record in records] == ["inside.png"]
    for line, reason in zip(
        skipped.reasons, ["links outside", "missing", "zero bytes"], strict=True
    ):
        assert reason in line


def test_a_folder_without_jsonl_gives_pictures_with_captions(folder):
    (folder / "cats/1.txt").write_text("\ufeffa cat\n", encoding="utf-8")
    (folder / "cats/2.txt").write_bytes(b"\xff")
    (folder / "b.jpeg").write_bytes(PICTURE)
    (folder / "c.JPG").write_bytes(PICTURE)
    (folder / "c.txt").write_text("a dog")
    (folder / "d.txt").write_text("alone")
    (folder / "e.png").touch()
    (folder / "e.txt").write_text("no bytes")
    (folder / "._c.jpg").write_bytes(b"left by another system")
    records, skipped = read(folder)
    assert [(record.id, record.segments) for record in records] == [
        ("c", ("a dog", folder / "c.JPG")),
        ("cats/1", ("a cat", folder / "cats/1.png")),
    ]
    expected = {
        "b.jpeg": "no caption beside it: write b.txt",
        "e.png": "zero bytes",
        "d.txt": "no picture beside it",
        "cats/2.png": "2.txt is not UTF-8",
    }
    assert len(skipped.reasons) == len(expected)
    for line, (where, reason) in zip(skipped.reasons, expected.items()):
        assert line.startswith(f"{where}: ")
        assert reason in line


def test_too_many_bad_records_stop_the_run_with_one_message(folder):
    write_lines(folder, *({"text": f"{i}"} for i in range(97)), "{", "{", "{")
    with pytest.raises(ValueError, match="bad") as error:
        read(folder, max_bad_fraction=0.01)
    message = str(error.value)
    assert message.startswith("3 of 100 records are bad (3.0%, limit 1.0%): captions.jsonl:98: ")
    assert message.endswith("raise --max_bad_fraction")
    assert len(read(folder, max_bad_fraction=0.03)[0]) == 97


def test_a_hopeless_folder_stops_early_and_an_unlucky_stretch_does_not(folder):
    write_lines(folder, *["{"] * 5000)
    skipped = Skipped()
    with pytest.raises(ValueError, match="100 of 100 records are bad"):
        list(read_folder(folder, skipped))
    texts = [{"text": f"{i}"} for i in range(996)]
    write_lines(folder, *texts[:99], "{", "{", "{", "{", *texts[99:])
    assert len(read(folder, max_bad_fraction=0.01)[0]) == 996


def test_reading_is_streaming(folder):
    write_lines(folder, {"text": "first"}, *["{"] * 10)
    skipped = Skipped()
    assert next(read_folder(folder, skipped)).segments == ("first",)
    assert skipped.seen == 1


def test_nothing_to_read_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no records"):
        read(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read(tmp_path / "none")


def test_the_list_of_skipped_records_is_written_whole(tmp_path):
    skipped = Skipped(seen=2)
    skipped.add("a.jsonl:1", "no content")
    skipped.add("a.jsonl:2", "text is empty")
    skipped.write(tmp_path / "skipped.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["skipped.txt"]
    assert (tmp_path / "skipped.txt").read_text() == (
        "a.jsonl:1: no content\na.jsonl:2: text is empty\n"
    )
