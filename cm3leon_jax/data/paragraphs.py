"""Long texts about pictures: Image Paragraph, Localized Narratives; and the tables of Flickr30k.

paragraphs_v1.json        a list of {image_id, url, paragraph}; VG_100K/2317429.jpg
train_split.json          a list of image_ids: those of the paragraphs that are read
coco_train_localized_narratives-00000-of-00004.jsonl
                          {dataset_id, image_id, annotator_id, caption} a line
results_20130124.token    1000092795.jpg#0 TAB caption
results.csv               image_name| comment_number| comment
"""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import Any

from cm3leon_jax.data.annotations import (
    Entry,
    Index,
    checked,
    find_image,
    home,
    open_index,
    scan_entries,
)
from cm3leon_jax.data.coco import group, scan_karpathy
from cm3leon_jax.data.records import Found, Place, Record, check_text, start_at
from cm3leon_jax.data.tables import Line, list_lines


def scan_paragraphs(files: Sequence[Path], start: Place | None = None) -> Iterator[Found]:
    """Pictures with their paragraph: all of paragraphs_v1.json, or those of a *_split.json."""
    for file, place in start_at(files, start):
        index = None
        if file.stem.endswith("_split"):
            index = open_index(file.with_name("paragraphs_v1.json"), "", "image_id")
        yield from scan_entries(file, "", place, partial(_paragraph, home(file), index))


def scan_narratives(files: Sequence[Path], start: Place | None = None) -> Iterator[Found]:
    """Narratives, each a record: a picture may have those of several people, which are a group."""
    for file, place in start_at(files, start):
        for line in list_lines(file, place):
            entry = Entry(None, line.content, line.place)
            make = partial(checked, partial(_narrative, home(file)), entry)
            yield Found(f"{file.name}:{line.place.line}", make, line.place)


def scan_flickr(files: Sequence[Path], start: Place | None = None) -> Iterator[Found]:
    """The pictures of Flickr30k: the split train of Karpathy's JSON, or all of a table of captions.

    A row is a caption; the rows of a picture follow one another.
    """
    for file, place in start_at(files, start):
        if file.suffix == ".json":
            yield from scan_karpathy([file], place, splits=("train",), is_coco=False)
            continue
        split = _split_token if file.suffix == ".token" else _split_comment
        lines = (line for line in list_lines(file, place) if not _is_header(line))
        rows = ((line.place, *split(line.content)) for line in lines)
        for name, found in groupby(rows, itemgetter(1)):
            there = list(found)
            make = partial(_flickr, home(file), name, [text for _, _, text in there])
            yield Found(f"{file.name}:{there[0][0].line}", make, there[0][0])


def _paragraph(root: Path, index: Index | None, entry: Entry) -> Record:
    told = entry.read()
    if index is not None:
        found = index[told]
        if not found:
            raise ValueError(f"image_id {told} has no paragraph")
        told = found[0]
    id, text = told["image_id"], " ".join(told["paragraph"].split())
    check_text("paragraph", text)
    image = find_image(root, f"{id}.jpg")
    url = told.get("url", "")
    return Record(str(id), (text, image), source_url=url, group=f"visual_genome/{id}")


def _narrative(root: Path, entry: Entry) -> Record:
    try:
        told = entry.read()
    except json.JSONDecodeError as error:
        raise ValueError(f"broken JSON: {error}") from None
    id, dataset = str(told["image_id"]), told["dataset_id"]
    text = " ".join(told["caption"].split())
    check_text("caption", text)
    is_coco = "coco" in dataset
    names = [f"{int(id):012d}.jpg"] if is_coco else [f"{id}.jpg"]
    where = group(int(id)) if is_coco else _group_elsewhere(dataset, id)
    key = f"{dataset}/{id}/{told['annotator_id']}"
    return Record(key, (text, find_image(root, *names)), group=where)


def _group_elsewhere(dataset: str, id: str) -> str:
    """The group of a picture that is not of COCO, as the other readers name it."""
    name = dataset.lower()
    if "open" in name:
        return f"openimages/{id}"
    return f"flickr30k/{id}.jpg" if "flickr" in name else f"{name}/{id}"


def _flickr(root: Path, name: str, texts: Sequence[Any]) -> Record:
    if not PurePosixPath(name).suffix:
        raise ValueError(f"{name[:60]!r}: no name of a picture at the start of a row")
    for number, text in enumerate(texts, start=1):
        check_text(f"caption {number}", text)
    return Record(name, (*texts, find_image(root, name)), group=f"flickr30k/{name}")


def _is_header(line: Line) -> bool:
    return line.place.line == 1 and line.content.startswith(b"image_name|")


def _split_token(line: bytes) -> tuple[str, str]:
    """The picture and the caption of a row of results_20130124.token."""
    key, _, text = line.decode(errors="replace").partition("\t")
    return key.rpartition("#")[0], " ".join(text.split())


def _split_comment(line: bytes) -> tuple[str, str]:
    """The picture and the caption of a row of results.csv; no caption where a bar is missing."""
    name, _, rest = line.decode(errors="replace").partition("|")
    return name.strip(), " ".join(rest.partition("|")[2].split())
