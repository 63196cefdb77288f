"""Chameleon, Anole and Lumina-mGPT (Hugging Face directories) into bundles, and bundles back.

The transformer is streamed: a tensor is read, turned and written, then the next. The image
tokenizer is small and read whole: its encoder stands among the shards, its decoder there too
(Anole) or, as in Chameleon's own release, in a file of taming's names, `vqgan.safetensors`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cm3leon_jax import checkpoint, config
from cm3leon_jax.fields import require
from cm3leon_jax.interop import vq
from cm3leon_jax.interop.cards import read_licence, write_card
from cm3leon_jax.interop.chameleon_form import OURS, read_form, rows, write_form
from cm3leon_jax.interop.chameleon_ids import Ids, order_ids, same_order, special_names
from cm3leon_jax.interop.shards import Shards, read_json, write_file, write_shards
from cm3leon_jax.interop.streamed import Reader, Writer
from cm3leon_jax.tokens.published import PublishedTokenizer
from cm3leon_jax.tokens.text import TextTokenizer

IMAGES = "model.vqmodel."  # their prefix of the image tokenizer
TAMING = "vqgan.safetensors"  # the whole image tokenizer, by taming's names
TEXTS = ("tokenizer.json", "text_tokenizer.json")
SOURCE = "source.json"  # of a bundle: what it was converted from


def read_directory(source: Path, target: Path) -> None:
    """Converts a Hugging Face directory into the new folder of a bundle.

    Raises ValueError naming the tensor or field that does not fit.
    """
    theirs = read_json(source / "config.json")
    shards = Shards.open(source)
    experiment, ids, text = _read_language(source, theirs)
    m, t = experiment.model, experiment.image_tokenizer
    table = {row.theirs: row for row in rows(m, ids, theirs.get("model_parallel_size") or 1)}
    images = {row.theirs: row for row in vq.rows(vq.TAMING, t)}
    whole, checked = _open_taming(source / TAMING, images)
    present = any(name.startswith(IMAGES) for name in shards.tensors)
    decoder = any(name.startswith(f"{IMAGES}decoder.") for name in shards.tensors)
    rule = f"its decoder is neither among the shards nor in {TAMING}: make that of the release's"
    rule += f" vqgan.ckpt: cm3leon convert --from_torch vqgan.ckpt {source / TAMING}"
    require(decoder or bool(whole), "convert", str(source), rule)
    inside = {
        IMAGES + name: row
        for name, row in images.items()
        if (present or not whole) and (decoder or not name.startswith("decoder."))
    }
    wanted = {name: row.shapes for name, row in table.items()}
    wanted |= {name: (row.their_shape,) for name, row in inside.items()}
    fields = {name: row.fields for name, row in table.items()}
    shards.check(wanted, fields | dict.fromkeys(inside, "vq_config"))

    forms: dict[str, Any] = {}
    for name, row in table.items():
        shape = row.shape if row.layer is None else (m.layers, *row.shape)
        form = shape, shards.tensors[name].dtype
        if forms.setdefault(row.ours, form) != form:
            dtypes = f"{form[1]}, other layers {forms[row.ours][1]}"
            raise ValueError(f"tensor {name}: has dtype {dtypes}; save all in one")
    writer = Writer(target / "transformer", forms)
    network = dict(whole)
    for name, array in shards.stream():
        if name in table:
            row = table[name]
            writer.write(row.ours, row.take(array), row.layer)
        else:
            part = inside[name]
            ours = part.take(array)
            same = part.ours not in whole or np.array_equal(
                whole[part.ours].astype(ours.dtype), ours
            )
            if not same:
                raise ValueError(
                    f"tensor {name}: is another one in {TAMING}; use those of one model"
                )
            network.setdefault(part.ours, ours)
    checkpoint.save_named(target / "image_tokenizer", vq.complete(network, t))
    if text is not None:
        text.save(target / "text.model")
    digests = shards.sha256 | checked
    licence = read_licence(source)
    checkpoint.write_experiment(target, experiment)
    if OURS not in theirs:
        content = {"config": theirs, "theirs": ids.theirs.tolist(), "sha256": digests}
        checkpoint.write_json(target / SOURCE, content)
    write_card(target, f"Chameleon's form, {m.parameters:,} parameters", source, digests, licence)


def write_directory(bundle: Path, target: Path) -> None:
    """Converts a bundle of Chameleon's form into a directory that transformers loads.

    The image tokenizer's encoder lies among the shards, where transformers wants it, and the whole
    of it in `vqgan.safetensors`, since transformers has no decoder.
    """
    experiment = checkpoint.read_experiment(bundle)
    m, t = experiment.model, experiment.image_tokenizer
    came_from = (bundle / SOURCE).exists()
    source = read_json(bundle / SOURCE) if came_from else None
    ids = same_order(m)
    if source is not None:
        order = np.asarray(source["theirs"], np.int32)
        right = order.shape == (m.vocabulary,)
        require(right, SOURCE, order.shape, f"must list model.vocabulary={m.vocabulary} ids")
        ids = Ids(order, m.specials, m.sentinels, m.text_pieces, m.image_codes)
    network, pictures = Reader(bundle / "transformer"), Reader(bundle / "image_tokenizer")
    table = {row.theirs: row for row in rows(m, ids)}
    images = {row.theirs: row for row in vq.rows(vq.TAMING, t)}
    dtype = network.form("embedding")[1]
    written = write_form(experiment, source and source["config"], str(dtype))
    tensors = {name: (row.shapes[0], network.form(row.ours)[1]) for name, row in table.items()}
    whole = {n: (row.their_shape, pictures.form(row.ours)[1]) for n, row in images.items()}
    tensors |= {IMAGES + n: form for n, form in whole.items() if not n.startswith("decoder.")}

    def numbers(name: str) -> Any:
        if name in table:
            row = table[name]
            return row.give(network.read(row.ours, row.layer))
        part = images[name.removeprefix(IMAGES)]
        return part.give(pictures.read(part.ours))

    write_shards(target, tensors, numbers)
    write_file(target / TAMING, whole, numbers)
    checkpoint.write_json(target / "config.json", written)
    text = TextTokenizer.load(bundle / "text.model")
    if isinstance(text, PublishedTokenizer):
        (target / "tokenizer.json").write_text(json.dumps(text.tokenizer))
    else:
        text.save(target / "text.model")


def _read_language(
    source: Path, theirs: Mapping[str, Any]
) -> tuple[config.Experiment, Ids, TextTokenizer | None]:
    """Experiment, ids and text tokenizer; those of a model of ours are kept as they were."""
    if OURS in theirs:
        experiment = config.from_dict(theirs[OURS])
        return experiment, same_order(experiment.model), TextTokenizer.load(source / "text.model")
    found = [source / name for name in TEXTS if (source / name).exists()]
    rule = f"holds none of {', '.join(TEXTS)}; copy that of the model there"
    require(bool(found), "convert", str(source), rule)
    tokenizer = read_json(found[0])
    vocabulary = tokenizer.get("model", {}).get("vocab", {})
    added = {token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])}
    mapped: Mapping[str, int] = theirs.get("vocabulary_map") or {}
    taken = set(mapped.values())  # transformers renames a reserved id to <image>
    rest = {name: id for name, id in (vocabulary | added).items() if id not in taken}
    names = {**rest, **mapped}
    special = special_names(tokenizer)

    def order(size: int, codes: int) -> Ids:
        return order_ids(names, special, size, codes)

    experiment, ids = read_form(theirs, order)
    return experiment, ids, PublishedTokenizer.of(tokenizer, ids.text_ids.tolist())


def _open_taming(path: Path, images: Mapping[str, vq.Row]) -> tuple[vq.Arrays, dict[str, str]]:
    """Our arrays of the image tokenizer's own file and its sha256; nothing where there is none."""
    if not path.exists():
        return {}, {}
    shards = Shards.open(path)
    kept = {n: t for n, t in shards.tensors.items() if not n.startswith(vq.TAMING.dropped)}
    wanted = {name: (row.their_shape,) for name, row in images.items()}
    dropped = {n: (t.shape,) for n, t in shards.tensors.items() if n not in kept}
    shards.check(wanted | dropped, dict.fromkeys(wanted, "vq_config"))
    arrays = {images[n].ours: images[n].take(x) for n, x in shards.stream() if n in images}
    return arrays, shards.sha256
