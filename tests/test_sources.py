"""Folders: each line of a JSONL or CSV file is a record, or is listed with why it is none."""

import re

import pytest
from folders import PICTURE, SIZE, read, write_csv, write_lines, write_pictures

from cm3leon_jax import config
from cm3leon_jax.data import sources
from cm3leon_jax.data.records import Skipped

# Folders


@pytest.fixture
def folder(tmp_path):
    return write_pictures(tmp_path / "data")


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
            "answers": ["a cat", "cat"],
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
    assert (two.question, two.answer, two.answers) == ("what?", "a cat", ("a cat", "cat"))
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
    with pytest.raises(ValueError, match="100 of 100 records are bad"):
        read(folder, max_bad_fraction=0.01)
    texts = [{"text": f"{i}"} for i in range(996)]
    write_lines(folder, *texts[:99], "{", "{", "{", "{", *texts[99:])
    assert len(read(folder, max_bad_fraction=0.01)[0]) == 996


def test_reading_is_streaming(folder):
    write_lines(folder, {"text": "first"}, *["{"] * 10)
    data, skipped = config.Data(source=str(folder)), Skipped()
    (part,) = sources.plan(data, SIZE)
    assert next(sources.read(part, data, SIZE, skipped)).segments == ("first",)
    assert skipped.seen == 1


def test_nothing_to_read_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no records"):
        read(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read(tmp_path / "none")


# CSV


def test_a_row_is_an_entry_and_an_empty_cell_is_left_out(folder):
    write_csv(
        folder,
        "\ufeffimage, caption,id,license,source_url\r",
        'cats/1.png,"a ""big"" cat,\n\non a mat",one,CC0,http://a\r',
        "\r",
        "cats/2.png,another,,,",
    )
    (one, two), skipped = read(folder)
    assert skipped.reasons == []
    assert one.segments == ('a "big" cat,\n\non a mat', folder / "cats/1.png")
    assert (one.id, one.license, one.source_url) == ("one", "CC0", "http://a")
    assert (one.origin, two.origin) == ("captions.csv:2", "captions.csv:6")
    assert (two.segments[0], two.license, two.group) == ("another", "", "cats/2.png")
    assert read(folder / "captions.csv")[0][1].id == two.id


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("cats/1.png", "1 cells: the header has 3"),
        ("cats/1.png,a,b,c", "4 cells: the header has 3"),
        ("cats/1.png,caf\udce9,x", "not UTF-8"),
        ('cats/1.png,"a"b,x', "broken CSV"),
        (f"cats/1.png,{'a' * 200_000},x", "broken CSV: field larger"),
        ("cats/9.png,a,x", "image 'cats/9.png' is missing"),
        ("../1.png,a,x", "leaves the folder"),
        ("cats/1.png,,x", "no caption"),
        ("cats/1.png,a,good", "duplicate id 'good'"),
    ],
)
def test_a_bad_row_is_skipped_and_listed_with_its_line(folder, row, reason):
    write_csv(folder, "image,text,id", 'cats/1.png,"two\nlines",good', row, "cats/2.png,b,last")
    records, skipped = read(folder)
    assert [record.id for record in records] == ["good", "last"]
    (line,) = skipped.reasons
    assert line.startswith("captions.csv:4: ")
    assert reason in line


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("imge,text", "captions.csv:1: unknown column 'imge': did you mean 'image'?"),
        ("image;text", "unknown column 'image;text'"),
        ("image,boxes", "unknown column 'boxes': known are"),
        ("text,image,text", "column 'text' stands there twice"),
    ],
)
def test_a_header_that_cannot_be_understood_stops_the_run(folder, header, message):
    write_csv(folder, header, "cats/1.png,a")
    with pytest.raises(ValueError, match=re.escape(message)):
        read(folder)
