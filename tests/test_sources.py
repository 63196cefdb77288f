import io
import json
import pickle
import re
import tarfile
from dataclasses import asdict

import numpy as np
import pytest

from cm3leon_jax import config
from cm3leon_jax.data import emoji, sources
from cm3leon_jax.data.pictures import to_png
from cm3leon_jax.data.records import Skipped
from cm3leon_jax.data.sources import tasks_with_records, told_of

PICTURE = to_png(np.zeros((4, 4, 3), np.uint8))
SIZE = 32  # pixels of procedural pictures

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


def read(source, max_bad_fraction=0.999, **values):
    """All records of a source, part after part, and what was skipped."""
    data = config.Data(source=str(source), max_bad_fraction=max_bad_fraction, **values)
    skipped = Skipped()
    parts = sources.plan(data, SIZE)
    records = [record for part in parts for record in sources.read(part, data, SIZE, skipped)]
    skipped.check(max_bad_fraction)
    return records, skipped


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


def write_csv(root, *lines, name="captions.csv"):
    (root / name).write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))


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


# Parts


def make_jsonl(root):
    lines = [json.dumps({"text": f"a{i}"}) for i in range(7)]
    lines[2], lines[5] = "{", '{"text": "a5", "license": "NC"}'
    (root / "a.jsonl").write_text("\n\n".join(lines))
    (root / "b.jsonl").write_text("\n")
    (root / "c.jsonl").write_text("".join(json.dumps({"text": f"c{i}"}) + "\r\n" for i in range(6)))
    return root, 13


def make_csv(root):
    rows = [f'"row\n{i}",NC' if i % 3 else f'"a ""{i}""",' for i in range(11)]
    write_csv(root, "text,license", *rows[:6], "", *rows[6:], "one cell", '"open', name="a.csv")
    write_csv(root, "text", "last", name="b.csv")
    return root, 14


def make_pairs(root):
    for name in ("a", "a/b", "a/b/c", "a-b", "a.b", ".hidden", "d/e/f"):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(2):
            (root / name / f"{i}.png").write_bytes(PICTURE)
            (root / name / f"{i}.txt").write_text(f"{name} {i}")
    (root / "a/b/0.txt").unlink()
    (root / "d/alone.txt").touch()
    (root / "loop").symlink_to(root)
    return root, 13


def make_tars(root):
    for shard in range(3):
        with tarfile.open(root / f"shard-{shard}.tar", "w") as tar:
            for i in range(shard * 3):
                add(tar, f"{i}.png", PICTURE)
                if i != 2:
                    add(tar, f"{i}.txt", f"{shard} {i}".encode())
    damaged = (root / "shard-1.tar").read_bytes()
    (root / "shard-1.tar").write_bytes(damaged[: 512 * 7])  # one sample is left, then half of one
    return root / "shard-*.tar", 8


def add(tar, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def make_scenes(root):
    return "scenes", 13


KINDS = [make_jsonl, make_csv, make_pairs, make_tars, make_scenes]


def describe(records):
    return [
        (r.id, r.group, r.license, r.question, r.origin, *map(to_comparable, r.segments))
        for r in records
    ]


def to_comparable(segment):
    return segment.tobytes() if isinstance(segment, np.ndarray) else segment


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_parts_together_are_the_source_and_each_can_be_read_alone(tmp_path, make, length):
    source, count = make(tmp_path)
    values = {"count": 13 if source == "scenes" else 0}
    whole, left_out = read(source, **values)
    assert left_out.seen == count
    assert len(whole) + len(left_out.reasons) == count

    data = config.Data(source=str(source), part=length, max_bad_fraction=0.999, **values)
    parts = sources.plan(data, SIZE)
    assert [(part.number, part.start) for part in parts] == [
        (i, i * length) for i in range(-(-count // length))
    ]
    assert parts[-1].stop == count
    read_alone = {}
    for part in reversed(parts):
        part = pickle.loads(pickle.dumps(sources.Part(**json.loads(json.dumps(asdict(part))))))
        skipped = Skipped()
        records = list(sources.read(part, data, SIZE, skipped))
        assert skipped.seen == part.stop - part.start
        read_alone[part.number] = describe(records), skipped.to_dict()
    pieces = [read_alone[part.number] for part in parts]
    assert [record for records, _ in pieces for record in records] == describe(whole)
    assert Skipped.from_dicts(content for _, content in pieces) == left_out


@pytest.mark.parametrize("make", KINDS)
def test_count_takes_the_first_records_of_the_source(tmp_path, make):
    source, count = make(tmp_path)
    whole, left_out = read(source, count=count)
    some, skipped = read(source, count=6, part=4)
    assert skipped.seen == 6
    assert describe(some) == describe(whole)[: len(some)]
    assert skipped.reasons == left_out.reasons[: 6 - len(some)]


def test_a_line_number_in_a_later_part_is_that_of_the_file(folder):
    make_jsonl(folder)
    write_lines(folder, *({"text": f"{i}"} for i in range(9)), "", "{", name="d.jsonl")
    data = config.Data(source=str(folder), part=4, max_bad_fraction=0.9)
    last, skipped = sources.plan(data, SIZE)[-1], Skipped()
    assert (last.number, last.path, last.line) == (5, str(folder / "d.jsonl"), 8)
    assert [r.origin for r in sources.read(last, data, SIZE, skipped)] == ["d.jsonl:8", "d.jsonl:9"]
    assert skipped.reasons[0].startswith("d.jsonl:11: broken JSON")


def test_a_part_is_read_without_the_others(folder):
    write_lines(folder, *({"text": f"{i}"} for i in range(8)), name="a.jsonl")
    write_lines(folder, *({"text": f"{i}"} for i in range(8, 12)), name="b.jsonl")
    data = config.Data(source=str(folder), part=2)
    parts = sources.plan(data, SIZE)
    for name in ("a.jsonl", "b.jsonl"):
        content = bytearray((folder / name).read_bytes())
        stretch = slice(parts[2].offset, parts[3].offset) if name == "a.jsonl" else slice(0)
        kept = bytes(content[stretch])
        content[:] = b"\xff" * len(content)
        content[stretch] = kept
        (folder / name).write_bytes(content)
    records = list(sources.read(parts[2], data, SIZE, Skipped()))
    assert [record.segments for record in records] == [("4",), ("5",)]


def test_files_that_have_shrunk_since_the_plan_are_noticed(folder):
    write_lines(folder, *({"text": f"{i}"} for i in range(9)))
    data = config.Data(source=str(folder), part=4)
    parts = sources.plan(data, SIZE)
    write_lines(folder, *({"text": f"{i}"} for i in range(6)))
    with pytest.raises(ValueError, match="2 records of part 1 are gone since it was planned"):
        list(sources.read(parts[1], data, SIZE, Skipped()))
    (folder / "captions.jsonl").rename(folder / "other.jsonl")
    with pytest.raises(ValueError, match="4 records of part 0 are gone"):
        list(sources.read(parts[0], data, SIZE, Skipped()))


# Licences and names


def test_only_named_licenses_are_kept_and_the_others_counted(folder):
    licenses = ["CC0", "CC-BY-NC", "", "CC0", "CC-BY-NC", "CC-BY"]
    write_lines(folder, *({"text": f"{i}", "license": n} for i, n in enumerate(licenses)), "{")
    records, skipped = read(folder, allow_licenses=("CC0", "CC-BY"))
    assert [record.segments for record in records] == [("0",), ("3",), ("5",)]
    assert skipped.refused == {"CC-BY-NC": 2, "": 1}
    assert (skipped.seen, len(skipped.reasons)) == (7, 1)
    assert len(read(folder)[0]) == 6


@pytest.mark.parametrize(
    ("files", "source", "message"),
    [
        (["a.jsonl", "b.csv"], "", "holds .*jsonl and .*csv files: name one of them"),
        (["a.xml"], "a.xml", "give a folder, or a .jsonl, .csv or .tar file"),
        (["a.jsonl"], "*.jsonl", "no such folder or file: .* 'shards-.*.tar'"),
        (["a.tar"], "b*.tar", "no such folder or file"),
        ([], "tfds/mnist", "no such folder or file"),
    ],
)
def test_a_source_that_cannot_be_told_is_named(tmp_path, files, source, message):
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read(tmp_path / source)


def test_scenes_come_in_sizes_that_are_drawn_and_in_limited_number():
    with pytest.raises(ValueError, match=r"image_tokenizer.size=48: scenes have \[32, 64\] pixels"):
        sources.plan(config.Data(source="scenes"), 48)
    with pytest.raises(ValueError, match=r"data.count=1000000000: there are \d+ scenes; use fewer"):
        sources.plan(config.Data(source="scenes", count=10**9), 32)


def test_emoji_are_one_part_and_need_their_font(tmp_path):
    data = config.Data(source="emoji", font=str(tmp_path / "none.ttf"))
    with pytest.raises(emoji.FontNotFound):
        sources.plan(data, SIZE)
    try:
        font = emoji.find_font()
    except emoji.FontNotFound as error:
        pytest.skip(str(error))
    data = config.Data(source="emoji", font=str(font), count=3, part=2)
    (part,) = sources.plan(data, SIZE)
    skipped = Skipped()
    records = list(sources.read(part, data, SIZE, skipped))
    assert (len(records), skipped.seen) == (3, 3)
    assert {record.license for record in records} == {emoji.LICENSE}


def test_tasks_tell_the_same_records_unless_other_ones_are_made_for_them():
    tasks = ("edit", "edges", "edges_of", "question")
    scenes = config.Data(source="scenes", tasks=tasks)
    assert told_of(scenes) == {
        "edit": "edit",
        "edges": "edges",
        "edges_of": "edges",
        "question": "",
    }
    folder = config.Data(source="mine", tasks=tasks)
    assert told_of(folder) == {"edit": "", "edges": "edges", "edges_of": "edges", "question": ""}
    assert tasks_with_records(config.Data(source="emoji", tasks=("edit",))) == ["edit"]
