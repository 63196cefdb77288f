"""Sources in parts, each read alone; what of a source is taken, and which sources there are."""

import io
import json
import pickle
import tarfile
from dataclasses import asdict

import numpy as np
import pytest
from folders import PICTURE, SIZE, read, write_csv, write_lines, write_pictures

from cm3leon_jax import config
from cm3leon_jax.data import emoji, sources
from cm3leon_jax.data.records import Skipped
from cm3leon_jax.data.sources import tasks_with_records, told_of


@pytest.fixture
def folder(tmp_path):
    return write_pictures(tmp_path / "data")


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


def test_emoji_need_their_font(tmp_path):
    data = config.Data(source="emoji", font=str(tmp_path / "none.ttf"))
    with pytest.raises(emoji.FontNotFound):
        sources.plan(data, SIZE)


def test_emoji_are_one_part(font):
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
