"""Where documents come from: any source as one stream of records, planned in parts.

    scenes, emoji          made here
    tfds:NAME[:SPLIT]      a TFDS dataset (`datasets`)
    a folder               with *.jsonl or *.csv tables (`tables`), *.tar shards (`archives`), or
                           pictures x.png beside captions x.txt (`folders`)
    a file, 'shards-*.tar' one table, one shard, or the shards that match
    the folder or annotation file of a public dataset, where `data.task` is one (`instructions`)

A part is read by itself, in memory that does not grow with the source; all parts together are the
source, however large the parts are.
"""

import glob
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from cm3leon_jax import config
from cm3leon_jax.data import archives, datasets, emoji, folders, scene_records, scenes, tables
from cm3leon_jax.data.instructions import describe, find_task, list_files
from cm3leon_jax.data.records import Found, Place, Record, Scan, Skipped
from cm3leon_jax.tokens import wording

SCANS: dict[str, Scan] = {
    "jsonl": tables.scan_jsonl,
    "csv": tables.scan_csv,
    "tar": archives.scan_tars,
    "pairs": folders.scan_pairs,
}


@dataclass(frozen=True)
class Part:
    """Records `start` to `stop` (exclusive) of a source, numbered from 0, good and bad ones alike.

    All fields are plain: `Part(**json.loads(json.dumps(asdict(part))))` is the part again.
    """

    number: int
    kind: str  # scenes | emoji | tfds | jsonl | csv | tar | pairs | a dataset's name
    start: int  # of tfds: examples, which may be several records each
    stop: int
    path: str = ""  # where the first one is: a file or folder,
    offset: int = 0  # its byte or entry,
    line: int = 1  # its line


def plan(data: config.Data, size: int) -> list[Part]:
    """The first `data.count` (0: all) records of `data.source` as parts of `data.part` records.

    Files are read through once for the places where parts start. Procedural pictures are made at
    `size` pixels. Emoji are one part, because those drawn alike are told apart by drawing them.

    Raises FileNotFoundError or ValueError when there is no such source, or it holds no records.
    """
    most = data.count or None
    dataset = find_task(data.task).scan and data.task
    if dataset and (data.source in ("scenes", "emoji") or data.source.startswith("tfds:")):
        rule = f"give the folder that it was downloaded to; {describe(dataset)}"
        raise ValueError(f"data.source={data.source!r}, data.task={dataset!r}: {rule}")
    if data.source == "scenes":
        there_are = scene_records.count(data.task, _find_grid(size))
        if data.count > there_are:
            raise ValueError(f"data.count={data.count}: there are {there_are} scenes; use fewer")
        return _cut("scenes", data.count or there_are, data.part)
    if data.source == "emoji":
        emoji.find_font(data.font or None)
        there_are = emoji.count_names() * (emoji.EDITS if data.task == "edit" else 1)
        return [Part(0, "emoji", 0, min(most or there_are, there_are))]
    if data.source.startswith("tfds:"):
        there_are = datasets.count_examples(data.source, data.fields)
        return _cut("tfds", min(most or there_are, there_are), data.part)

    kind, scan, files = _find_scan(data)
    count, places = 0, []
    for count, found in enumerate(islice(scan(files, None), most), start=1):
        if (count - 1) % data.part == 0:
            places.append(found.place)
    if not count:
        raise ValueError(
            f"{data.source} holds no records: {describe(dataset)}"
            if dataset
            else f"{data.source} holds no records: give *.jsonl or *.csv files, *.tar shards, "
            "or pictures x.png with x.txt"
        )
    parts = zip(_cut(kind, count, data.part), places, strict=True)
    return [Part(part.number, kind, part.start, part.stop, *place) for part, place in parts]


def read(part: Part, data: config.Data, size: int, skipped: Skipped) -> Iterator[Record]:
    """Streams the records of a part; bad ones, and an id met before in it, go to `skipped`.

    With `data.allow_licenses`, records of any other license are refused, and counted there.

    Raises ValueError as soon as no plausible rest could bring the bad records of `skipped` below
    `data.max_bad_fraction`, and when the source has become shorter than it was planned.
    """
    ids: set[str] = set()
    for found in _scan(part, data, size):
        skipped.seen += 1
        try:
            record = found.make()
            if record.id in ids:
                raise ValueError(f"duplicate id {record.id!r}")
            if not record.origin:
                record = replace(record, origin=found.origin)
        except (ValueError, OSError) as error:
            skipped.add(found.origin, str(error))
            skipped.check_early(data.max_bad_fraction)
            continue
        ids.add(record.id)
        if data.allow_licenses and record.license not in data.allow_licenses:
            skipped.refused[record.license] += 1
        else:
            yield record


def for_task(data: config.Data, task: str) -> config.Data:
    """The data of one of `data.tasks`: a tenth as many records, told otherwise."""
    count = -(-data.count // 10)
    if data.source == "scenes" and count:
        count = min(count, scene_records.count(task))
    return replace(data, task=task, tasks=(), count=count, sample=-(-data.sample // 10))


def told_of(data: config.Data) -> dict[str, str]:
    """For each of `data.tasks` the first task that tells the same records, maybe itself; "" where
    they are those of `data.task`."""
    kinds: dict[str, Callable[[str], str]] = {"scenes": scene_records.kind_of, "emoji": str}
    kind = kinds.get(data.source, _map_of)
    first = {kind(data.task): ""}
    return {task: first.setdefault(kind(task), task) for task in data.tasks}


def _map_of(task: str) -> str:
    """The kind of map that is made for a task, or "": then records are told as they are read."""
    kind = find_task(task).template.removesuffix("_of")
    return kind if kind in wording.STRUCTURES else ""


def tasks_with_records(data: config.Data) -> list[str]:
    """Those of `data.tasks` that have records of their own."""
    return [task for task, other in told_of(data).items() if task == other]


def _scan(part: Part, data: config.Data, size: int) -> Iterator[Found]:
    length = part.stop - part.start
    match part.kind:
        case "scenes":
            grid = _find_grid(size)
            for record in scene_records.records(length, data.seed, grid, data.task, part.start):
                yield _wrap(record)
        case "emoji":
            made = emoji.skin_tone_edits if data.task == "edit" else emoji.records
            for record in islice(made(size, data.font or None), length):
                yield _wrap(record)
        case "tfds":
            yield from datasets.scan_examples(data.source, data.fields, part.start, part.stop)
        case _:
            yield from _scan_files(part, data)


def _scan_files(part: Part, data: config.Data) -> Iterator[Found]:
    kind, scan, files = _find_scan(data)
    missing = part.stop - part.start
    if kind == part.kind:
        place = Place(part.path, part.offset, part.line)
        for found in islice(scan(files, place), missing):
            missing -= 1
            yield found
    if missing:
        raise ValueError(
            f"{data.source}: {missing} records of part {part.number} are gone since it was planned:"
            " prepare again in a new work directory"
        )


def _wrap(record: Record) -> Found:
    return Found(record.origin or record.id, lambda: record)


def _find_grid(size: int) -> int:
    grids = {layout.size: grid for grid, layout in scenes.LAYOUTS.items()}
    if size not in grids:
        raise ValueError(f"image_tokenizer.size={size}: scenes have {sorted(grids)} pixels")
    return grids[size]


def _cut(kind: str, count: int, length: int) -> list[Part]:
    starts = range(0, count, length)
    return [Part(n, kind, start, min(start + length, count)) for n, start in enumerate(starts)]


def _find_scan(data: config.Data) -> tuple[str, Scan, list[Path]]:
    """How the files of a source are read: the kind of its parts, its scan, and its files."""
    if scan := find_task(data.task).scan:
        return data.task, scan, list_files(data.task, data.source)
    kind, files = _list_files(data.source)
    return kind, SCANS[kind], files


def _list_files(source: str) -> tuple[str, list[Path]]:
    """Which of SCANS reads the source, and what it is given to read."""
    path = Path(source)
    if path.is_dir():
        there = {kind: sorted(path.glob(f"[!.]*.{kind}")) for kind in ("jsonl", "csv", "tar")}
        kinds = [kind for kind, files in there.items() if files]
        if len(kinds) > 1:
            names = " and ".join(f"*.{kind}" for kind in kinds)
            raise ValueError(f"{source} holds {names} files: name one of them, or move the others")
        return (kinds[0], there[kinds[0]]) if kinds else ("pairs", [path])
    kind = path.suffix.removeprefix(".")
    if path.is_file():
        if kind not in ("jsonl", "csv", "tar"):
            raise ValueError(f"{source}: give a folder, or a .jsonl, .csv or .tar file")
        return kind, [path]
    if kind == "tar" and (shards := sorted(Path(name) for name in glob.glob(source))):
        return "tar", shards
    raise FileNotFoundError(
        f"no such folder or file: {source}; give one with --data, or shards as 'shards-*.tar'"
    )
