"""The finished networks that turn records into documents, opened from where their stages left them.

text.model  image_tokenizer/network  retriever/network  upscaler/network
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
from cm3leon_jax.tokens.text import TextTokenizer

STAGES = {
    "text.model": "tokenizer text",
    "image_tokenizer/network": "tokenizer image",
    "retriever/network": "train --stage retriever",
    "documents/skipped.txt": "prepare",
    "neighbours/held_out.json": "retrieve",
}
SHAPE = ("scale", "channels", "growth", "blocks")  # of an upscaler


def require_result(workdir: Path, name: str) -> Path:
    """The result of an earlier stage; raises ValueError naming the command that makes it."""
    if not (workdir / name).exists():
        verb = STAGES[name]
        raise ValueError(f"{workdir / name} is missing; run: cm3leon {verb} --workdir {workdir}")
    return workdir / name


def open_network(
    folder: PathLike, build: Callable[[jax.Array], Any], mesh: jax.sharding.Mesh
) -> Any:
    """The network saved in `folder`, in the form of `build(key)`, on a mesh."""
    form = jax.eval_shape(build, jax.random.key(0))
    return load_network(local(folder), form, shardings(form, mesh))


def open_text(workdir: Path) -> TextTokenizer:
    return TextTokenizer.load(require_result(workdir, "text.model"))


def open_image_tokenizer(c: config.Experiment, folder: PathLike, mesh: jax.sharding.Mesh) -> VQGAN:
    return open_network(folder, lambda key: VQGAN(c.image_tokenizer, rngs=nnx.Rngs(key)), mesh)


def open_transformer(
    c: config.Experiment, folder: PathLike, mesh: jax.sharding.Mesh
) -> Transformer:
    return open_network(folder, lambda key: Transformer(c.model, rngs=nnx.Rngs(key)), mesh)


def open_retriever(c: config.Experiment, folder: PathLike, mesh: jax.sharding.Mesh) -> CLIP:
    build = lambda key: CLIP(c.retriever, c.model.text_pieces, rngs=nnx.Rngs(key))  # noqa: E731
    return open_network(folder, build, mesh)


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
