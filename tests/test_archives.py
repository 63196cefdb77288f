import gc
import io
import json
import subprocess
import tarfile

import numpy as np
import pytest

from cm3leon_jax import config
from cm3leon_jax.data import archives, sources
from cm3leon_jax.data.pictures import to_png
from cm3leon_jax.data.records import Skipped

PICTURE = to_png(np.zeros((4, 4, 3), np.uint8))


def write_shard(path, members, **options):
    """A tar of (name, contents) pairs, or ready-made TarInfo objects without contents."""
    with tarfile.open(path, "w", **options) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def sample(name, **facts):
    return [(f"{name}.png", PICTURE), (f"{name}.txt", b"a cat"), *to_json(name, facts)]


def to_json(name, facts):
    return [(f"{name}.json", json.dumps(facts).encode())] if facts else []


def read(source, **values):
    data = config.Data(source=str(source), max_bad_fraction=0.999, **values)
    skipped = Skipped()
    records = [
        record
        for part in sources.plan(data, 32)
        for record in sources.read(part, data, 32, skipped)
    ]
    return records, skipped


def test_a_sample_is_the_members_that_share_a_name_up_to_its_first_dot(tmp_path):
    shard = write_shard(
        tmp_path / "a.b.tar",
        [
            ("notes", b"no dot: no sample"),
            ("./x/0.1.PNG", b"not a picture's suffix"),
            ("./x/0.jpeg", PICTURE),
            ("./x/0.seg.png", b"another column"),
            ("./x/0.txt", "\ufeff a caf\u00e9\n".encode()),
            ("./x/.hidden.png", b""),
            ("y/0.webp", PICTURE),
            ("y/0.json", b'{"caption": "short", "text": "long"}'),
        ],
    )
    (one, two), skipped = read(shard)
    assert skipped.reasons == []
    assert (one.id, one.group, one.origin) == ("a.b/x/0", "a.b/x/0", "a.b.tar:x/0")
    assert one.segments == ("a caf\u00e9", PICTURE)
    assert (two.id, two.segments) == ("a.b/y/0", ("short", PICTURE))


def test_the_json_gives_the_details_of_a_record(tmp_path):
    facts = {
        "key": "000", "width": 4, "sha256": None, "caption": "passed over", "url": "http://a",
        "license": "CC0", "question": "what?", "answer": "a cat", "boxes": [["cat", [0, 0, 1, 2]]],
    }  # fmt: skip
    members = [*sample("0", **facts), *sample("1", license=None, url="", source_url="http://b")]
    (one, two), _ = read(write_shard(tmp_path / "a.tar", members))
    assert (one.segments[0], one.license, one.source_url) == ("a cat", "CC0", "http://a")
    assert (one.question, one.answer, one.boxes) == ("what?", "a cat", (("cat", (0, 0, 1, 2)),))
    assert (two.license, two.source_url) == ("", "http://b")


def link(name, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/hostname"
    return info


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("x.png", PICTURE)], "no caption: give x.txt, or x.json with a caption"),
        ([("x.txt", b"alone")], "0 pictures: give one a sample, such as x.jpg"),
        ([("x.png", PICTURE), *sample("x")[1:], ("x.jpg", PICTURE)], "2 pictures"),
        ([*sample("x"), ("x.txt", b"again")], "two members are 'x.txt'"),
        ([("x.png", b""), ("x.txt", b"a")], "'x.png' is empty (zero bytes)"),
        ([("x.png", PICTURE), ("x.txt", b" ")], "text is empty"),
        ([("x.png", PICTURE), ("x.txt", b"\xff")], "x.txt is not UTF-8: invalid start byte"),
        ([*sample("x"), ("x.json", b"{")], "x.json: broken JSON"),
        ([*sample("x"), ("x.json", b"[" * 100_000)], "x.json: broken JSON: nested too deeply"),
        ([*sample("x"), ("x.json", b"[]")], "x.json is a JSON list: give an object"),
        (sample("x", license=5), "license=5 is not text"),
        (sample("x", boxes=5), "boxes=5 is not a list"),
        (sample("../x"), "member '../x.png' leaves the archive"),
        (sample("/etc/x"), "member '/etc/x.png' leaves the archive"),
        ([link("x.png"), ("x.txt", b"a")], "member 'x.png' is not a regular file"),
        ([link("x.png", tarfile.LNKTYPE), ("x.txt", b"a")], "is not a regular file"),
        ([("x.png", bytes(1001)), ("x.txt", b"a")], "'x.png' has 1001 bytes: at most 1000"),
        ([("x.png", PICTURE), ("x.txt", bytes(1001))], "'x.txt' has 1001 bytes: at most 1000"),
        (sample("good"), "duplicate id 'a/good'"),
    ],
)
def test_a_bad_sample_is_skipped_and_named(tmp_path, monkeypatch, members, reason):
    monkeypatch.setattr(archives, "MAX_BYTES", 10**6 if "nested" in reason else 1000)
    shard = write_shard(tmp_path / "a.tar", [*sample("good"), *sample("b"), *members, *sample("z")])
    records, skipped = read(shard)
    assert [record.id for record in records] == ["a/good", "a/b", "a/z"]
    (line,) = skipped.reasons
    assert line.startswith("a.tar:")
    assert reason in line
    assert "\n" not in line


def test_a_member_that_claims_more_than_there_is_is_never_read(tmp_path):
    bomb = tarfile.TarInfo("x.png")
    bomb.size = 2**40
    with (tmp_path / "a.tar").open("wb") as shard:
        shard.write(bomb.tobuf())
        shard.truncate(2**34)  # zeros that take no room on the disk
    records, skipped = read(tmp_path / "a.tar")
    assert records == []
    assert skipped.reasons == ["a.tar: damaged from byte 0 on: unexpected end of data"]

    sparse = tarfile.TarInfo("x.png")
    sparse.size = 2**33
    with (tmp_path / "a.tar").open("wb") as shard:
        shard.write(sparse.tobuf())
        shard.truncate(2**34)
    assert read(tmp_path / "a.tar")[1].reasons == [
        "a.tar:x: member 'x.png' has 8589934592 bytes: at most 67108864"
    ]


def damage_header(content, at):
    content[at : at + 100] = b"\xff" * 100


def cut(content, at):
    del content[at:]


def turn_size_negative(content, at):
    info = tarfile.TarInfo.frombuf(bytes(content[at : at + 512]), "utf-8", "strict")
    info.size = -1024
    content[at : at + 512] = info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("harm", "at", "byte", "reason"),
    [
        (damage_header, 512 * 8, 512 * 8, "no header of a member"),  # of the third sample
        (damage_header, 512 * 6, 512 * 6, "no header of a member"),  # of the second's caption
        (cut, 512 * 7, 512 * 6, "unexpected end of data"),
        (cut, 512 * 5 + 9, 512 * 4, "unexpected end of data"),
        (cut, 512 * 6 + 9, 512 * 6, "no header of a member"),
        (turn_size_negative, 512 * 6, 512 * 6, "member '1.txt' has -1024 bytes"),
    ],
)
@pytest.mark.parametrize("length", [1, 2, 4096])
def test_a_damaged_shard_ends_with_one_reason_and_the_next_one_follows(
    tmp_path, harm, at, byte, reason, length
):
    for name in ("a.tar", "b.tar"):
        members = [member for i in range(4) for member in sample(f"{i}")]
        write_shard(tmp_path / name, members)
    content = bytearray((tmp_path / "a.tar").read_bytes())
    harm(content, at)
    (tmp_path / "a.tar").write_bytes(content)
    records, skipped = read(tmp_path, part=length)
    assert [record.id for record in records] == ["a/0", *(f"b/{i}" for i in range(4))]
    assert skipped.reasons == [f"a.tar: damaged from byte {byte} on: {reason}"]
    assert skipped.seen == 6


@pytest.mark.parametrize("content", [b"", b"\xff" * 2000, b"short"])
def test_a_file_that_is_no_tar_is_one_bad_record(tmp_path, content):
    (tmp_path / "a.tar").write_bytes(content)
    write_shard(tmp_path / "b.tar", sample("0"))
    records, skipped = read(tmp_path)
    assert [record.id for record in records] == ["b/0"]
    (line,) = skipped.reasons
    assert line.startswith("a.tar: damaged from byte 0 on: ")


def test_a_shard_without_its_closing_zeros_is_whole(tmp_path):
    shard = write_shard(tmp_path / "a.tar", sample("0"))
    shard.write_bytes(shard.read_bytes()[: 512 * 4])
    assert len(read(shard)[0]) == 1
    assert read(shard)[1].reasons == []


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_are_read_from_any_part(tmp_path, format):
    names = [f"{'folder/' * 40}\u00e9{i}" for i in range(3)]
    members = [member for name in names for member in sample(name)]
    write_shard(tmp_path / "a.tar", members, format=format)
    records, skipped = read(tmp_path, part=1)
    assert [record.id for record in records] == [f"a/{name}" for name in names]
    assert skipped.reasons == []


def test_shards_of_the_system_s_tar_are_read(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(PICTURE)
        (tmp_path / f"{i}.txt").write_text(f"caption {i}")
    names = [f"./{i}.{suffix}" for i in range(3) for suffix in ("png", "txt")]
    subprocess.run(["tar", "-cf", "a.tar", *names], cwd=tmp_path, check=True)
    records, _ = read(tmp_path)
    assert [(r.id, *r.segments) for r in records] == [
        (f"a/{i}", f"caption {i}", PICTURE) for i in range(3)
    ]


def test_members_with_holes_are_not_trusted(tmp_path):
    with (tmp_path / "0.png").open("wb") as picture:
        picture.write(PICTURE)
        picture.truncate(10**7)
    (tmp_path / "0.txt").write_text("a cat")
    (tmp_path / "1.png").write_bytes(PICTURE)
    (tmp_path / "1.txt").write_text("a dog")
    names = ["0.png", "0.txt", "1.png", "1.txt"]
    subprocess.run(["tar", "--sparse", "-cf", "a.tar", *names], cwd=tmp_path, check=True)
    assert (tmp_path / "a.tar").stat().st_size < 10**5
    records, skipped = read(tmp_path / "a.tar", part=1)
    assert [record.id for record in records] == ["a/1"]
    assert skipped.reasons == ["a.tar:0: member '0.png' is not a regular file"]


def test_members_are_forgotten_once_they_are_read(tmp_path):
    write_shard(tmp_path / "a.tar", [member for i in range(300) for member in sample(f"{i}")])
    reader = archives.scan_tars([tmp_path / "a.tar"])
    for _ in range(299):
        next(reader)
    held = [thing for thing in gc.get_objects() if isinstance(thing, tarfile.TarInfo)]
    assert 1 < len(held) < 10


def test_nothing_is_written_and_only_one_picture_is_held(tmp_path, monkeypatch):
    write_shard(tmp_path / "a.tar", [member for i in range(5) for member in sample(f"{i}")])
    data = config.Data(source=str(tmp_path / "a.tar"))
    names, read_member = [], archives._read
    monkeypatch.setattr(
        archives, "_read", lambda stream, m: names.append(m.name) or read_member(stream, m)
    )
    (part,) = sources.plan(data, 32)
    assert names == []  # the plan reads headers only
    reader = sources.read(part, data, 32, Skipped())
    assert [next(reader).id, next(reader).id] == ["a/0", "a/1"]
    assert sorted(names) == ["0.png", "0.txt", "1.png", "1.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]
