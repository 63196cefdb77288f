"""COCO and datasets in its layout: captions, boxes of objects (Objects365 too), Karpathy's splits.

    annotations/captions_train2017.json     images, annotations of {image_id, caption}
    annotations/instances_train2017.json    images, categories, annotations of {image_id,
                                            category_id, bbox [left, top, width, height], iscrowd}
    train2017/000000000009.jpg              pictures; COCO_train2014_000000000009.jpg in others

One picture is one record, whose group `coco/9` is the same in every dataset on pictures of COCO: a
picture that is held out of one of them is held out of all.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any

from cm3leon_jax.data.annotations import (
    Entry,
    Index,
    find_image,
    home,
    open_index,
    read_value,
    scan_entries,
)
from cm3leon_jax.data.pictures import upright_size
from cm3leon_jax.data.records import Box, Found, Place, Record, start_at


def group(image_id: Any) -> str:
    """The group of a picture of COCO."""
    return f"coco/{image_id}"


def scan_captions(files: Sequence[Path], start: Place | None = None) -> Iterator[Found]:
    """The pictures of captions_*.json, each with all of its captions."""
    for file, place in start_at(files, start):
        captions = open_index(file, "annotations", "image_id")
        make = partial(_captioned, home(file), captions, _names(file, "licenses"))
        yield from scan_entries(file, "images", place, make)


def scan_instances(
    files: Sequence[Path], start: Place | None = None, is_coco: bool = True
) -> Iterator[Found]:
    """The pictures of instances_*.json with the boxes of their objects; crowds are no object.

    Pictures in which nothing is marked are passed over. The text is all captions of the picture
    where `captions_...` lies beside the file, else the names of what is marked.
    """
    for file, place in start_at(files, start):
        boxes = open_index(file, "annotations", "image_id")
        beside = file.with_name(file.name.replace("instances", "captions"))
        has_captions = beside != file and beside.is_file()
        captions = open_index(beside, "annotations", "image_id") if has_captions else None
        names = _names(file, "categories")
        make = partial(
            _boxed, home(file), boxes, captions, names, _names(file, "licenses"), is_coco
        )
        yield from scan_entries(file, "images", place, make, partial(_is_marked, boxes))


def scan_karpathy(
    files: Sequence[Path], start: Place | None = None, *, splits: tuple[str, ...], is_coco: bool
) -> Iterator[Found]:
    """The pictures of some splits of dataset_coco.json or dataset_flickr30k.json with captions."""
    for file, place in start_at(files, start):
        make = partial(_sentences, home(file), is_coco)
        is_meant = partial(_is_of, splits)
        yield from scan_entries(file, "images", place, make, is_meant)


def _captioned(root: Path, captions: Index, licenses: Mapping[int, str], entry: Entry) -> Record:
    image = entry.read()
    texts = _texts(captions[image["id"]], "caption")
    return _record(_find_file(root, image), image, texts, licenses, group(image["id"]))


def _boxed(
    root: Path,
    found: Index,
    captions: Index | None,
    names: Mapping[int, str],
    licenses: Mapping[int, str],
    is_coco: bool,
    entry: Entry,
) -> Record:
    image = entry.read()
    size = image["width"], image["height"]
    boxes = tuple(
        _box(annotation, names, size)
        for annotation in found[image["id"]]
        if not annotation.get("iscrowd")
    )
    if not boxes:
        raise ValueError("nothing but crowds is marked")
    labels = ", ".join(dict.fromkeys(label for label, _ in boxes))
    texts = _texts(captions[image["id"]], "caption") if captions is not None else [labels]
    where, path = group(image["id"]) if is_coco else "", _find_file(root, image)
    boxes = _resized(boxes, size, upright_size(path))
    return _record(path, image, texts, licenses, where, boxes)


def _is_of(splits: tuple[str, ...], entry: Entry) -> bool:
    return entry.read()["split"] in splits


def _is_marked(boxes: Index, entry: Entry) -> bool:
    return entry.read()["id"] in boxes


def _box(annotation: Mapping[str, Any], names: Mapping[int, str], size: tuple[int, int]) -> Box:
    """The box of an annotation, cut at the edges of the picture."""
    which, category = f"annotation {annotation.get('id')}", annotation["category_id"]
    if category not in names:
        raise ValueError(f"{which}: category_id={category} is not in categories")
    left, top, width, height = annotation["bbox"]
    x0, y0 = max(0, left), max(0, top)
    x1, y1 = min(size[0], left + width), min(size[1], top + height)
    if not (x0 < x1 and y0 < y1):
        is_flat = width <= 0 or height <= 0
        reason = "has no area" if is_flat else f"lies outside of {size[0]} x {size[1]} pixels"
        raise ValueError(f"{which}: bbox={annotation['bbox']} {reason}")
    return names[category], (x0, y0, x1, y1)


def _resized(
    boxes: Sequence[Box], stated: tuple[int, int], found: tuple[int, int]
) -> tuple[Box, ...]:
    """Boxes in pixels of the file, which may be smaller or larger than the annotations state."""
    (width, height), (x, y) = stated, found
    if abs(x * height - y * width) > width + height:  # sides were rounded to whole pixels
        rule = "get the picture again, or resize both sides alike"
        raise ValueError(f"a picture of {x} x {y} pixels, annotated at {width} x {height}: {rule}")
    x_scale, y_scale = x / width, y / height
    return tuple(
        (label, (x0 * x_scale, y0 * y_scale, x1 * x_scale, y1 * y_scale))
        for label, (x0, y0, x1, y1) in boxes
    )


def _sentences(root: Path, is_coco: bool, entry: Entry) -> Record:
    image = entry.read()
    name = image["filename"]
    names = [f"{image['filepath']}/{name}", name] if "filepath" in image else [name]
    texts = _texts(image["sentences"], "raw")
    id = str(image["cocoid"]) if is_coco else name
    where = group(image["cocoid"]) if is_coco else f"flickr30k/{name}"
    return Record(id, (*texts, find_image(root, *names)), group=where)


def _find_file(root: Path, image: Mapping[str, Any]) -> Path:
    """The picture of an entry: COCO 2017 says its folder in the address alone."""
    path, url = PurePosixPath(image["file_name"]), image.get("coco_url")
    names = ["/".join(path.parts[-n:]) for n in (len(path.parts), 2, 1)]
    if url:
        names.insert(0, "/".join(PurePosixPath(url).parts[-2:]))
    return find_image(root, *dict.fromkeys(names))


def _record(
    path: Path,
    image: Mapping[str, Any],
    texts: list[str],
    licenses: Mapping[int, str],
    where: str,
    boxes: tuple[Box, ...] = (),
) -> Record:
    return Record(
        id=str(image["id"]),
        segments=(*texts, path),
        boxes=boxes,
        license=licenses.get(image.get("license", -1), ""),
        source_url=image.get("flickr_url") or image.get("coco_url") or "",
        group=where,
    )


def _texts(entries: Sequence[Mapping[str, Any]], field: str) -> list[str]:
    """The captions of a picture; an empty one makes it a bad record, as none does."""
    texts = [" ".join(entry[field].split()) for entry in entries]
    if not texts:
        raise ValueError("no captions")
    if not all(texts):
        raise ValueError(f"caption {texts.index('') + 1} of {len(texts)} is empty")
    return texts


def _names(file: Path, name: str) -> dict[Any, str]:
    """The names of categories or licences by id, read once as long as the file stays as it is."""
    return _read_names(file, name, file.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _read_names(file: Path, name: str, changed: int) -> dict[Any, str]:
    try:
        return {one["id"]: one["name"] for one in read_value(file, name) or []}
    except (TypeError, KeyError):
        raise ValueError(f"{file}: {name} is no list of id and name; get the file again") from None
