"""Products of the layers with their weights: plain, or in int8 by Qwix.

int8: operands are rounded at each use, with one scale per token and per output feature (their
largest absolute value), multiplied into int32 and scaled back; so are both products of the backward
pass, with the incoming gradient rounded likewise. The parameters themselves stay float32.
"""

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Product = Callable[[str, jax.Array, jax.Array], jax.Array]


def choose_product(quantize: str) -> Product:
    """The einsum of inputs and a weight for `model.quantize`; ValueError where int8 lacks Qwix."""
    return multiply if quantize == "none" else partial(jnp.einsum, _dot_general=_int8_product())


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def multiply(axes: str, inputs: jax.Array, weight: jax.Array) -> jax.Array:
    """jnp.einsum, with gradients that are einsums too.

    JAX's own gradient of a weight is a product and then a transposition, for which XLA on CPU
    transposes the incoming gradient and computes anew whatever made it, a tenth of a training step.
    """
    return jnp.einsum(axes, inputs, weight)


def _forward(axes: str, inputs: jax.Array, weight: jax.Array) -> tuple[jax.Array, tuple]:
    return multiply(axes, inputs, weight), (inputs, weight)


def _backward(axes: str, kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple:
    inputs, weight = kept
    (of_inputs, of_weight), of_output = axes.split("->")[0].split(","), axes.split("->")[1]
    return (
        jnp.einsum(f"{of_output},{of_weight}->{of_inputs}", gradient, weight),
        jnp.einsum(f"{of_inputs},{of_output}->{of_weight}", inputs, gradient),
    )


multiply.defvjp(_forward, _backward)


@cache  # one function object, so that jax's caches know it again
def _int8_product() -> Callable[..., jax.Array]:
    try:
        # Qwix's own door, `quantize_model`, rewrites modules and asks for their call stack; our
        # modules are plain pytrees inside a scan. Its product beneath takes arrays.
        from qwix._src.core.dot_general_qt import DotGeneralQtConfig, dot_general_qt
    except ImportError as error:
        raise ValueError(
            "model.quantize=int8: needs Qwix, which is not installed;"
            " pip install 'cm3leon_jax[int8]', or use model.quantize=none"
        ) from error
    types = ("lhs_qtype", "rhs_qtype", "dlhs_grad_qtype", "drhs_grad_qtype")
    int8 = DotGeneralQtConfig(**dict.fromkeys(types, jnp.int8))

    def dot_general(lhs: jax.Array, rhs: jax.Array, dimensions: Any, *_: Any, **__: Any):
        return dot_general_qt(lhs, rhs, dimensions, int8)

    return dot_general


class Int8(NamedTuple):
    """An array in int8 with a float32 scale: of a weight for each output feature."""

    values: jax.Array
    scales: jax.Array  # without the axes that share one

    @classmethod
    def of(cls, array: jax.Array, summed: tuple[int, ...]) -> "Int8":
        """Rounds to within half a step; the axes that a product sums share a scale."""
        array = array.astype(jnp.float32)
        scales = jnp.maximum(jnp.abs(array).max(axis=summed, keepdims=True), 1e-30) / 127
        values = jnp.round(array / scales).astype(jnp.int8)
        return cls(values, scales.squeeze(summed))


def multiply_int8(axes: str, inputs: jax.Array, weight: Int8) -> jax.Array:
    """jnp.einsum of inputs and a weight whose outputs are the last axes; the scales come after."""
    outputs = jnp.einsum(axes, inputs, weight.values.astype(inputs.dtype))
    return outputs * weight.scales.astype(inputs.dtype)


class Tiles(NamedTuple):
    """A weight in blocks of few columns: what one CPU reads fastest in products with few rows.

    XLA on CPU runs the product with such blocks on one core at 1.3 to 3 times the speed of a plain
    one with 2 to 16 rows on two, so there are two parts, which it runs side by side.
    """

    parts: tuple[jax.Array, ...]  # each [blocks, summed, columns]

    @classmethod
    def of(cls, weight: jax.Array, summed: int) -> "Tiles":
        """A weight whose first `summed` axes the product sums; a block is a head or 64 columns."""
        columns = weight.shape[-1] if weight.ndim > summed + 1 else math.gcd(weight.shape[-1], 64)
        rows = math.prod(weight.shape[:summed])
        blocks = weight.reshape(rows, -1, columns).swapaxes(0, 1)
        return cls(tuple(jnp.array_split(blocks, min(2, len(blocks)))))


FEW = 64  # rows; with more, blocks are slower than the whole matrix


def multiply_tiles(axes: str, inputs: jax.Array, weight: Tiles) -> jax.Array:
    """jnp.einsum of inputs and a weight, where the last axes of one are the first of the other."""
    names, outputs = axes.split("->")[0].split(",")[1], axes.split("->")[1]
    added = sum(name in outputs for name in names)
    lead = inputs.shape[: len(outputs) - added]
    rows = inputs.reshape(math.prod(lead), -1)
    if len(rows) <= FEW:
        by = [jnp.broadcast_to(rows, (len(part), *rows.shape)) for part in weight.parts]
        products = [jnp.einsum("grd,gdc->grc", x, part) for x, part in zip(by, weight.parts)]
        product = jnp.concatenate([x.swapaxes(0, 1) for x in products], axis=1)
    else:
        product = jnp.einsum("rd,gdc->rgc", rows, jnp.concatenate(weight.parts))
    return product.reshape(*lead, *(product.shape[1:] if added == 2 else (-1,)))
