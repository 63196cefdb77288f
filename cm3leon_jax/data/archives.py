"""WebDataset tar shards, read as streams: nothing is written to disk and no member is trusted.

A sample is a run of members that share their path up to the first dot of the name:

    0001.jpg                     one picture, of PICTURE_SUFFIXES
    0001.txt                     its caption; or "caption" or "text" in the JSON
    0001.json                    optional: DETAILS of a record; "url" is another "source_url"

Other members of a sample, and other keys of the JSON, are passed over. The id is shard/path.
"""

import json
import tarfile
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from cm3leon_jax.data.folders import DETAILS, PICTURE_SUFFIXES, to_record
from cm3leon_jax.data.records import Found, Place, Record, fail, start_at

MAX_BYTES = 64 * 2**20  # of one member: far above any photo, far below the memory


def scan_tars(shards: Sequence[Path], start: Place | None = None) -> Iterator[Found]:
    """The samples of the shards, one shard after the other.

    A damaged shard ends with one bad record, which stands for the sample that is damaged, or stands
    before the damage, and for all behind it. Then the next shard follows.
    """
    for shard, place in start_at(shards, start):
        yield from _scan_shard(shard, place or Place(str(shard)))


def _scan_shard(shard: Path, start: Place) -> Iterator[Found]:
    byte = start.offset
    with shard.open("rb") as stream:
        try:
            for key, group in groupby(_list_members(stream, byte), lambda m: _split(m.name)[0]):
                members: list[tarfile.TarInfo] = []
                for member in group:  # which may end in an error
                    members.append(member)
                    byte = members[0].offset
                make = partial(_read_sample, stream, members, shard.name, key)
                yield Found(f"{shard.name}:{key}", make, Place(start.path, byte))
        except tarfile.TarError as error:
            yield Found(shard.name, partial(fail, str(error)), Place(start.path, byte))


def _list_members(stream: BinaryIO, byte: int) -> Iterator[tarfile.TarInfo]:
    """The members of samples from that byte on; raises TarError where the archive is damaged.

    `tarfile` takes any broken header but the first for the end of the archive, so the end is looked
    at here: zeros, or the end of the file.
    """
    stream.seek(byte)
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            while (member := tar.next()) is not None:
                byte = member.offset
                if tar.offset <= byte:  # a size below zero: it would be read for ever
                    raise tarfile.ReadError(f"member {member.name!r} has {member.size} bytes")
                tar.members.clear()  # type: ignore[attr-defined]  # or it would remember all of them
                if not member.isdir() and _split(member.name)[0]:
                    yield member
            byte = stream.seek(tar.offset)
            if stream.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError("no header of a member")
    except (tarfile.TarError, OSError, OverflowError, ValueError) as error:
        raise tarfile.ReadError(f"damaged from byte {byte} on: {error}") from None


def _split(name: str) -> tuple[str, str]:
    """'a/b.seg.png' -> ('a/b', 'seg.png'); the first is empty for what belongs to no sample."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, suffix = base.partition(".")
    return (f"{folder}{slash}{stem}" if stem and suffix else "", suffix.lower())


def _read_sample(
    stream: BinaryIO, members: Sequence[tarfile.TarInfo], shard: str, key: str
) -> Record:
    known: dict[str, tarfile.TarInfo] = {}
    for member in members:
        suffix = _split(member.name)[1]
        if f".{suffix}" in PICTURE_SUFFIXES or suffix in ("txt", "json"):
            if suffix in known:
                raise ValueError(f"two members are {member.name!r}: give one")
            known[suffix] = _check_member(member)
    pictures = [member for suffix, member in known.items() if f".{suffix}" in PICTURE_SUFFIXES]
    if len(pictures) != 1:
        raise ValueError(f"{len(pictures)} pictures: give one a sample, such as {key}.jpg")
    (picture,) = pictures
    if not picture.size:
        raise ValueError(f"{picture.name!r} is empty (zero bytes)")
    facts = _read_facts(stream, known["json"]) if "json" in known else {}
    text = _read_text(stream, known["txt"]) if "txt" in known else None
    text = next((t for t in (text, facts.get("caption"), facts.get("text")) if t is not None), None)
    if text is None:
        raise ValueError(f"no caption: give {key}.txt, or {key}.json with a caption")
    id = f"{shard.removesuffix('.tar')}/{key}"
    details = {"source_url": facts["url"]} if "url" in facts else {}
    details |= {name: facts[name] for name in DETAILS if name in facts}
    entry = {"id": id, "text": text, "image": id, **details}
    return to_record(entry, lambda _: _read(stream, picture), f"{shard}:{key}")


def _check_member(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """The member, if it may be read."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"member {member.name!r} leaves the archive: give a path inside it")
    if not member.isreg() or member.issparse():
        raise ValueError(f"member {member.name!r} is not a regular file")
    if member.size > MAX_BYTES:
        raise ValueError(f"member {member.name!r} has {member.size} bytes: at most {MAX_BYTES}")
    return member


def _read(stream: BinaryIO, member: tarfile.TarInfo) -> bytes:
    stream.seek(member.offset_data)
    return stream.read(member.size)


def _read_text(stream: BinaryIO, member: tarfile.TarInfo) -> str:
    try:
        return _read(stream, member).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"{error.reason} at byte {error.start}"
        raise ValueError(f"{member.name} is not UTF-8: {reason}") from None


def _read_facts(stream: BinaryIO, member: tarfile.TarInfo) -> dict[str, Any]:
    """The JSON object of a sample without what it leaves open: null, or an empty string."""
    try:
        facts = json.loads(_read_text(stream, member))
    except RecursionError:
        raise ValueError(f"{member.name}: broken JSON: nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{member.name}: broken JSON: {error}") from None
    if not isinstance(facts, dict):
        raise ValueError(f"{member.name} is a JSON {type(facts).__name__}: give an object")
    return {name: fact for name, fact in facts.items() if fact not in (None, "")}
