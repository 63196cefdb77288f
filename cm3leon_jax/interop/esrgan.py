"""Weights of Real-ESRGAN and ESRGAN for `models.upscaler`, under either of their published names.

Takes arrays by name, as a .safetensors file has them. A .pth is a pickle: `cm3leon convert
--from_torch` makes safetensors of it. Every tensor is used exactly once.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import NDArray

from cm3leon_jax.checkpoint import from_names
from cm3leon_jax.config import Upscaler
from cm3leon_jax.fields import require
from cm3leon_jax.interop.shards import Shards
from cm3leon_jax.models.upscaler import COLOURS, SHRINK, RRDBNet

OLD = {  # names of the first ESRGAN: those of Real-ESRGAN
    "model.0": "conv_first",
    "model.3": "conv_up1",
    "model.6": "conv_up2",
    "model.8": "conv_hr",
    "model.10": "conv_last",
}
OURS = {
    "conv_first": "first",
    "conv_body": "trunk",
    "conv_up1": "up1",
    "conv_up2": "up2",
    "conv_hr": "high",
    "conv_last": "last",
}


def read_upscaler(path: Path) -> RRDBNet:
    """The network of a .safetensors file; ValueError for another file or network."""
    return fill_upscaler(dict(Shards.open(path).stream()))


def is_upscaler(names: Iterable[str]) -> bool:
    """Whether tensors have the names of an RRDBNet, either ones."""
    return {"conv_first.weight", "conv_body.weight"} <= {_rename(name) for name in names}


def fill_upscaler(tensors: Mapping[str, NDArray]) -> RRDBNet:
    """The network of these arrays; its shape is read from theirs."""
    left = {_rename(name): np.asarray(array, np.float32) for name, array in tensors.items()}
    rule = "two tensors have this name in either naming; use one checkpoint"
    require(len(left) == len(tensors), "tensors", len(tensors), rule)
    c = _shape(left)
    groups = [(block, group) for block in range(c.blocks) for group in (1, 2, 3)]

    def take(name: str, inputs: int, outputs: int) -> dict[str, NDArray]:
        shapes = {"weight": (outputs, inputs, 3, 3), "bias": (outputs,)}
        found = []
        for part, shape in shapes.items():
            full = f"{name}.{part}"
            require(full in left, "tensor", full, "is missing; use the whole checkpoint")
            array = left.pop(full)
            require(array.shape == shape, f"{full} shape", array.shape, f"use {shape}, as of {c}")
            found.append(array)
        return {"kernel": found[0].transpose(2, 3, 1, 0), "bias": found[1]}

    wide, more, side = c.channels, c.growth, SHRINK[c.scale]
    named: dict[str, Any] = {
        ours: take(
            theirs,
            COLOURS * side**2 if ours == "first" else wide,
            COLOURS if ours == "last" else wide,
        )
        for theirs, ours in OURS.items()
    }
    convs = {}
    for i in range(5):
        outputs = more if i < 4 else wide
        each = [
            take(f"body.{block}.rdb{group}.conv{i + 1}", wide + i * more, outputs)
            for block, group in groups
        ]
        stacked = jax.tree.map(lambda *rows: np.stack(rows), *each)
        convs[str(i)] = jax.tree.map(lambda x: x.reshape(c.blocks, 3, *x.shape[1:]), stacked)
    named["blocks"] = {"convs": convs}
    require(not left, "tensor", min(left, default=""), "is no part of an RRDBNet; use its own file")
    form = jax.eval_shape(lambda: RRDBNet(c, rngs=nnx.Rngs(0)))
    return from_names(form, jax.tree.map(jnp.asarray, named))


def _rename(name: str) -> str:
    """Real-ESRGAN's name of a tensor, without the prefix of its exponential mean."""
    name = re.sub(r"^(params_ema|params)\.", "", name)
    if found := re.match(r"model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.(\w+)$", name):
        return "body.{}.rdb{}.conv{}.{}".format(*found.groups())
    if found := re.match(r"model\.1\.sub\.\d+\.(weight|bias)$", name):
        return f"conv_body.{found[1]}"
    stem, _, part = name.rpartition(".")
    return f"{OLD.get(stem, stem)}.{part}"


def _shape(tensors: Mapping[str, NDArray]) -> Upscaler:
    names = ("conv_first.weight", "body.0.rdb1.conv1.weight")
    for name in names:
        require(name in tensors, "tensor", name, "is missing; use the weights of an RRDBNet")
    first, dense = (tensors[name] for name in names)
    scales = {COLOURS * side**2: scale for scale, side in SHRINK.items()}
    rule = f"a network of scale 4 or 2 reads {sorted(scales)} channels"
    require(first.shape[1] in scales, f"{names[0]} inputs", first.shape[1], rule)
    blocks = {int(name.split(".")[1]) for name in tensors if name.startswith("body.")}
    return Upscaler(scales[first.shape[1]], len(first), len(dense), max(blocks) + 1)
