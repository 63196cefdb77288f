"""The finished networks that turn records into documents, opened from where their stages left them.

text.model  image_tokenizer/network  retriever/network  upscaler/network

A retriever of ours reads the pieces of text.model and has the shape of the experiment; the folder
of a CLIP of others, as `cm3leon convert` writes it, also has clip.json and its own tokenizer.json.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from cm3leon_jax import config, processes
from cm3leon_jax.checkpoint import PathLike, load_network, local, save_network, write_json
from cm3leon_jax.fields import build
from cm3leon_jax.models.clip import CLIP
from cm3leon_jax.models.transformer import Transformer
from cm3leon_jax.models.upscaler import RRDBNet
from cm3leon_jax.models.vqgan import VQGAN
from cm3leon_jax.sharding import shardings
from cm3leon_jax.tokens.clip_text import ClipTokenizer
from cm3leon_jax.tokens.text import TextTokenizer

STAGES = {
    "text.model": "tokenizer text",
    "image_tokenizer/network": "tokenizer image",
    "retriever/network": "train --stage retriever",
    "documents/skipped.txt": "prepare",
    "neighbours/held_out.json": "retrieve",
}
CLIP_SHAPE, CLIP_TEXT = "clip.json", "tokenizer.json"  # beside the arrays of others' CLIP
SHAPE = ("scale", "channels", "growth", "blocks")  # of an upscaler


def require_result(workdir: Path, name: str) -> Path:
    """The result of an earlier stage; raises ValueError naming the command that makes it."""
    if not (workdir / name).exists():
        verb = STAGES[name]
        raise ValueError(f"{workdir / name} is missing; run: cm3leon {verb} --workdir {workdir}")
    return workdir / name


def open_network(
    folder: PathLike,
    build: Callable[[jax.Array], Any],
    mesh: jax.sharding.Mesh,
    as_stored: bool = False,
) -> Any:
    """The network saved in `folder`, in the form of `build(key)`, on a mesh.

    Its arrays are of the types that `build` gives them or, as_stored, that they have on disk.
    """
    form = jax.eval_shape(build, jax.random.key(0))
    return load_network(local(folder), form, shardings(form, mesh), as_stored)


def open_text(workdir: Path) -> TextTokenizer:
    return TextTokenizer.load(require_result(workdir, "text.model"))


def open_image_tokenizer(c: config.Experiment, folder: PathLike, mesh: jax.sharding.Mesh) -> VQGAN:
    return open_network(folder, lambda key: VQGAN(c.image_tokenizer, rngs=nnx.Rngs(key)), mesh)


def open_transformer(
    c: config.Experiment, folder: PathLike, mesh: jax.sharding.Mesh, as_stored: bool = False
) -> Transformer:
    build = lambda key: Transformer(c.model, rngs=nnx.Rngs(key))  # noqa: E731
    return open_network(folder, build, mesh, as_stored)


def open_retriever(
    c: config.Experiment, folder: PathLike, mesh: jax.sharding.Mesh, text: TextTokenizer
) -> tuple[CLIP, TextTokenizer | ClipTokenizer]:
    """The network and what spells texts for it: `text`, or the own tokenizer of others' CLIP."""
    shape, pieces, place = c.retriever, c.model.text_pieces, local(folder)
    speller: TextTokenizer | ClipTokenizer = text
    if (place / CLIP_SHAPE).exists():
        shape = build(shape, json.loads((place / CLIP_SHAPE).read_text()))
        speller = ClipTokenizer.load(place / CLIP_TEXT)
        pieces = speller.pieces
    form = lambda key: CLIP(shape, pieces, rngs=nnx.Rngs(key))  # noqa: E731
    return open_network(folder, form, mesh), speller


def save_upscaler(folder: PathLike, network: RRDBNet) -> None:
    """`network/`, and its shape in `config.json`: it goes into any bundle, whatever that says."""
    shape = {name: getattr(network.config, name) for name in SHAPE}
    local(folder).mkdir(parents=True, exist_ok=True)
    if processes.is_first():
        write_json(local(folder) / "config.json", shape)
    save_network(local(folder) / "network", network)


def open_upscaler(folder: PathLike, mesh: jax.sharding.Mesh) -> RRDBNet:
    path = local(folder) / "config.json"
    c = build(config.Upscaler(), json.loads(path.read_text()), f"{path}: ")
    return open_network(local(folder) / "network", lambda key: RRDBNet(c, rngs=nnx.Rngs(key)), mesh)
