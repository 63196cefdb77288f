"""Products of the layers in int8, forward and backward, by Qwix.

Operands are rounded to int8 at each use, with one scale per token and per output feature (their
largest absolute value), multiplied into int32 and scaled back; so are both products of the backward
pass, with the incoming gradient rounded likewise. The parameters themselves stay float32.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp

Einsum = Callable[[str, jax.Array, jax.Array], jax.Array]


def choose_einsum(quantize: str) -> Einsum:
    """The einsum for `model.quantize`; raises ValueError where int8 lacks Qwix."""
    return jnp.einsum if quantize == "none" else partial(jnp.einsum, _dot_general=_int8_product())


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
