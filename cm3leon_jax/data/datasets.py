"""TFDS datasets as records, by a small map of their features: "image=image,text=captions/text".

Datasets stored as ArrayRecord are read by random access, those stored as TFRecord by ranges.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from cm3leon_jax.data.pictures import to_png
from cm3leon_jax.data.records import Found, Record, fail

FIELDS = ("image", "text", "id", "license", "source_url")
MAPS = {
    "cifar10": "image=image,text=label,id=id",
    "coco_captions": "image=image,text=captions/text,id=image/id",
    "food101": "image=image,text=label",
    "laion400m": "image=image,text=caption,license=license,source_url=url",
    "oxford_flowers102": "image=image,text=label,id=file_name",
    "oxford_iiit_pet": "image=image,text=label,id=file_name",
    "tf_flowers": "image=image,text=label",
}
SOURCE = re.compile(r"tfds:([\w./-]+(?::\d[\w.]*)?)(?::([A-Za-z_]\w*))?")


@dataclass(frozen=True)
class _Dataset:
    """One split of a dataset, and where the fields of a record are in its examples."""

    builder: Any
    split: str
    examples: Sequence[Any] | None  # by random access; None: stored as TFRecord
    paths: dict[str, str]

    @property
    def name(self) -> str:
        return f"{self.builder.name}/{self.split}"


def count_examples(source: str, fields: str) -> int:
    """How many examples `tfds:NAME[:SPLIT]` has. Raises ValueError like `scan_examples`."""
    dataset = _open(source, fields)
    if dataset.examples is None:
        return dataset.builder.info.splits[dataset.split].num_examples
    return len(dataset.examples)


def scan_examples(source: str, fields: str, start: int, stop: int) -> Iterator[Found]:
    """The records of examples `start` to `stop`: one for each caption, grouped by the example.

    `source` is tfds:NAME[:SPLIT], by default the split train. `fields` says which features the
    FIELDS of a record are; empty, the shipped one of MAPS does. A class label becomes its name in
    words. Where no feature says it, the id is the example's number, and license and source_url are
    what the dataset states.

    Raises ValueError for an unknown dataset, split or feature, and for one not on this machine.
    """
    dataset = _open(source, fields)
    for number, example in _read_examples(dataset, start, stop):
        yield from _list_records(dataset, number, example)


def _open(source: str, fields: str) -> _Dataset:
    match = SOURCE.fullmatch(source)
    if not match:
        raise ValueError(f"data.source={source!r}: give tfds:NAME or tfds:NAME:SPLIT")
    name, split = match[1], match[2] or "train"
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise ValueError(f"{source} needs TFDS: pip install 'cm3leon_jax[data]'") from None
    try:
        builder = tfds.builder(name)
    except tfds.core.registered.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean tfds:{near[0]}?" if near else "see tensorflow.org/datasets/catalog"
        raise ValueError(f"data.source={source!r}: no such dataset; {hint}") from None
    except AssertionError as error:  # no such version
        raise ValueError(f"data.source={source!r}: {error}") from None
    paths = _parse_fields(fields or MAPS.get(builder.name, ""), builder)
    try:
        return _Dataset(builder, split, builder.as_data_source(split), paths)
    except (NotImplementedError, AssertionError, ValueError) as error:
        if not builder.is_prepared():
            make = f"tfds build {name} --file_format=array_record"
            raise ValueError(f"{source} is not on this machine: run `{make}` first") from None
        if split not in builder.info.splits:
            splits = ", ".join(builder.info.splits)
            raise ValueError(f"{source}: no split {split!r}; use one of {splits}") from None
        if not isinstance(error, NotImplementedError):
            raise
    return _Dataset(builder, split, None, paths)  # TFRecord: no random access


def _parse_fields(fields: str, builder: Any) -> dict[str, str]:
    features = builder.info.features
    pairs = [pair.strip().split("=") for pair in fields.split(",")]
    paths = {pair[0]: pair[-1] for pair in pairs}
    holds = {"image", "text"} <= paths.keys() <= set(FIELDS) and len(paths) == len(pairs)
    if not holds or any(len(pair) != 2 for pair in pairs):
        raise ValueError(
            f"data.fields={fields!r}: give image=FEATURE,text=FEATURE and, where there are such, "
            f"id, license, source_url; {builder.name} has {', '.join(features)}"
        )
    for path in paths.values():
        try:
            _pick(features, path)
        except (KeyError, TypeError):
            there = ", ".join(features)
            raise ValueError(
                f"data.fields: no feature {path!r}; {builder.name} has {there}"
            ) from None
    return paths


def _pick(tree: Any, path: str) -> Any:
    """What lies at "captions/text" in nested features or values; raises KeyError or TypeError.

    A name may itself hold a slash: "image/id" is one feature of COCO.
    """
    tree = getattr(tree, "feature", tree)  # of a sequence
    for name in tree:
        if name == path:
            return tree[name]
        if path.startswith(f"{name}/") and path not in tree:
            return _pick(tree[name], path.removeprefix(f"{name}/"))
    raise KeyError(path)


def _read_examples(dataset: _Dataset, start: int, stop: int) -> Iterator[tuple[int, Any]]:
    """Each example with its number; the error in place of one that cannot be read."""
    if dataset.examples is None:
        import tensorflow_datasets as tfds

        in_order = tfds.ReadConfig(interleave_cycle_length=1)  # one file after the other
        split = f"{dataset.split}[{start}:{stop}]"
        rows = dataset.builder.as_dataset(split=split, read_config=in_order)
        yield from enumerate(tfds.as_numpy(rows), start)
        return
    for number in range(start, stop):
        try:
            example = dataset.examples[number]
        except Exception as error:  # decoders raise anything
            example = error
        yield number, example


def _list_records(dataset: _Dataset, number: int, example: Any) -> Iterator[Found]:
    origin = f"{dataset.name}[{number}]"
    if isinstance(example, Exception):
        reason = f"cannot be read: {type(example).__name__}: {example}"
        yield Found(origin, partial(fail, " ".join(reason.split())))
        return
    captions = _list_values(example, dataset.paths["text"])
    if not captions:
        yield Found(origin, partial(fail, "no caption"))
    for i, caption in enumerate(captions):
        which = f"/{i}" if len(captions) > 1 else ""
        make = partial(_to_record, dataset, example, str(number), caption, which, origin)
        yield Found(f"{origin}{which}", make)


def _to_record(
    dataset: _Dataset, example: Any, number: str, caption: Any, which: str, origin: str
) -> Record:
    info, paths = dataset.builder.info, dataset.paths
    label = getattr(_pick(info.features, paths["text"]), "int2str", None)
    text = label(caption).replace("_", " ") if label else _to_text(caption)
    facts = {
        "id": number,
        "license": info.redistribution_info.license,
        "source_url": info.homepage,
        **{
            name: _to_text(*_list_values(example, path))
            for name, path in paths.items()
            if name not in ("image", "text")
        },
    }
    key = f"{dataset.name}/{facts['id']}"
    return Record(
        id=f"{key}{which}",
        segments=(" ".join(text.split()), _to_picture(_pick(example, paths["image"]))),
        license=facts["license"],
        source_url=facts["source_url"],
        origin=f"{origin}{which}",
        group=key,
    )


def _list_values(example: Any, path: str) -> list[Any]:
    """The values at a path, however a reader nests them: one, a list, or an array."""
    return np.ravel(np.asarray(_pick(example, path), dtype=object)).tolist()


def _to_text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _to_picture(pixels: np.ndarray) -> np.ndarray | bytes:
    """uint8 [Y, X, 3]; with transparency, a PNG that keeps it."""
    if pixels.shape[-1] == 4:
        return to_png(pixels)
    return np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels
