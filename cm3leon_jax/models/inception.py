"""The Inception network of December 2015, whose 2048 pooled features FID and KID are defined on.

It is the graph of the papers (arXiv 1512.00567 as released; FID: arXiv 1706.08500), not the one of
later image classifiers: average pools do not count the padding, and the last block takes a maximum
where the others take an average. Batch norms are folded into the convolutions.
B batch, Y and X pixels.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

SIZE = 299  # pixels of the square that the network reads
FEATURES = 2048
EPSILON = 1e-3  # of the batch norms

Array = jax.Array | NDArray[np.float32]
Weights = Mapping[str, tuple[Array, Array]]
"""Kernel [y x inputs outputs] and bias [outputs] of every convolution."""


class Conv(NamedTuple):
    """A convolution, its batch norm and a ReLU."""

    name: str
    outputs: int
    y: int
    x: int
    stride: int = 1
    is_padded: bool = True


class Split(NamedTuple):
    """Branches that read the same input and whose outputs are put side by side."""

    branches: tuple[tuple[Any, ...], ...]


AVERAGE, MAXIMUM, HALVE = "average", "maximum", "halve"  # pools of 3 x 3; the last with stride 2


def _square(name: str, outputs: int, side: int, stride: int = 1, is_padded: bool = True) -> Conv:
    return Conv(name, outputs, side, side, stride, is_padded)


def _block_a(name: str, pooled: int) -> Split:
    return Split(
        (
            (_square(f"{name}.branch1x1", 64, 1),),
            (_square(f"{name}.branch5x5_1", 48, 1), _square(f"{name}.branch5x5_2", 64, 5)),
            (
                _square(f"{name}.branch3x3dbl_1", 64, 1),
                _square(f"{name}.branch3x3dbl_2", 96, 3),
                _square(f"{name}.branch3x3dbl_3", 96, 3),
            ),
            (AVERAGE, _square(f"{name}.branch_pool", pooled, 1)),
        )
    )


def _block_b(name: str) -> Split:
    return Split(
        (
            (_square(f"{name}.branch3x3", 384, 3, 2, False),),
            (
                _square(f"{name}.branch3x3dbl_1", 64, 1),
                _square(f"{name}.branch3x3dbl_2", 96, 3),
                _square(f"{name}.branch3x3dbl_3", 96, 3, 2, False),
            ),
            (HALVE,),
        )
    )


def _block_c(name: str, width: int) -> Split:
    return Split(
        (
            (_square(f"{name}.branch1x1", 192, 1),),
            (
                _square(f"{name}.branch7x7_1", width, 1),
                Conv(f"{name}.branch7x7_2", width, 1, 7),
                Conv(f"{name}.branch7x7_3", 192, 7, 1),
            ),
            (
                _square(f"{name}.branch7x7dbl_1", width, 1),
                Conv(f"{name}.branch7x7dbl_2", width, 7, 1),
                Conv(f"{name}.branch7x7dbl_3", width, 1, 7),
                Conv(f"{name}.branch7x7dbl_4", width, 7, 1),
                Conv(f"{name}.branch7x7dbl_5", 192, 1, 7),
            ),
            (AVERAGE, _square(f"{name}.branch_pool", 192, 1)),
        )
    )


def _block_d(name: str) -> Split:
    return Split(
        (
            (
                _square(f"{name}.branch3x3_1", 192, 1),
                _square(f"{name}.branch3x3_2", 320, 3, 2, False),
            ),
            (
                _square(f"{name}.branch7x7x3_1", 192, 1),
                Conv(f"{name}.branch7x7x3_2", 192, 1, 7),
                Conv(f"{name}.branch7x7x3_3", 192, 7, 1),
                _square(f"{name}.branch7x7x3_4", 192, 3, 2, False),
            ),
            (HALVE,),
        )
    )


def _block_e(name: str, pool: str) -> Split:
    def both(branch: str) -> Split:
        return Split(((Conv(f"{branch}a", 384, 1, 3),), (Conv(f"{branch}b", 384, 3, 1),)))

    return Split(
        (
            (_square(f"{name}.branch1x1", 320, 1),),
            (_square(f"{name}.branch3x3_1", 384, 1), both(f"{name}.branch3x3_2")),
            (
                _square(f"{name}.branch3x3dbl_1", 448, 1),
                _square(f"{name}.branch3x3dbl_2", 384, 3),
                both(f"{name}.branch3x3dbl_3"),
            ),
            (pool, _square(f"{name}.branch_pool", 192, 1)),
        )
    )


NETWORK = (
    _square("Conv2d_1a_3x3", 32, 3, 2, False),
    _square("Conv2d_2a_3x3", 32, 3, 1, False),
    _square("Conv2d_2b_3x3", 64, 3),
    HALVE,
    _square("Conv2d_3b_1x1", 80, 1),
    _square("Conv2d_4a_3x3", 192, 3, 1, False),
    HALVE,
    _block_a("Mixed_5b", 32),
    _block_a("Mixed_5c", 64),
    _block_a("Mixed_5d", 64),
    _block_b("Mixed_6a"),
    _block_c("Mixed_6b", 128),
    _block_c("Mixed_6c", 160),
    _block_c("Mixed_6d", 160),
    _block_c("Mixed_6e", 192),
    _block_d("Mixed_7a"),
    _block_e("Mixed_7b", AVERAGE),
    _block_e("Mixed_7c", MAXIMUM),
)


def kernel_shapes() -> dict[str, tuple[int, int, int, int]]:
    """[y x inputs outputs] of every convolution by the name that the public weights give it."""
    shapes: dict[str, tuple[int, int, int, int]] = {}

    def walk(steps: Sequence[Any], width: int) -> int:
        for step in steps:
            if isinstance(step, Split):
                width = sum(walk(branch, width) for branch in step.branches)
            elif isinstance(step, Conv):
                shapes[step.name] = step.y, step.x, width, step.outputs
                width = step.outputs
        return width

    walk(NETWORK, 3)
    return shapes


def fold_norm(
    kernel: NDArray, scale: NDArray, shift: NDArray, mean: NDArray, variance: NDArray
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Kernel [y x inputs outputs] and bias of a convolution with its batch norm inside."""
    factor = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + EPSILON)
    return (kernel * factor).astype(np.float32), (shift - mean * factor).astype(np.float32)


def features(weights: Weights, pixels: jax.Array) -> jax.Array:
    """[B 299 299 3] in [-1, 1] -> [B 2048], the mean over the last 8 x 8 places."""
    return _run(NETWORK, pixels, weights).mean((1, 2))


def _run(steps: Sequence[Any], x: jax.Array, weights: Weights) -> jax.Array:
    for step in steps:
        if isinstance(step, Split):
            x = jnp.concatenate([_run(branch, x, weights) for branch in step.branches], axis=-1)
        elif isinstance(step, Conv):
            x = _convolve(x, step, *weights[step.name])
        else:
            x = _pool(x, step)
    return x


def _convolve(x: jax.Array, c: Conv, kernel: Array, bias: Array) -> jax.Array:
    sides = [(c.y // 2, c.y // 2), (c.x // 2, c.x // 2)] if c.is_padded else "VALID"
    y = jax.lax.conv_general_dilated(
        x,
        jnp.asarray(kernel),
        (c.stride, c.stride),
        sides,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=jax.lax.Precision.HIGHEST,  # bfloat16 products would move the score
    )
    return jax.nn.relu(y + bias)


def _pool(x: jax.Array, kind: str) -> jax.Array:
    window, same = (1, 3, 3, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
    if kind == HALVE:
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, (1, 2, 2, 1), "VALID")
    if kind == MAXIMUM:
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, (1, 1, 1, 1), same)
    total = jax.lax.reduce_window(x, 0.0, jax.lax.add, window, (1, 1, 1, 1), same)
    rows, columns = (np.convolve(np.ones(n), np.ones(3), "same") for n in x.shape[1:3])
    return total / np.outer(rows, columns).astype(np.float32)[..., None]  # padding is not counted
