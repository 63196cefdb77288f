"""Logit combinators: pure functions, composed in the order guide -> temper -> keep -> draw.

B rows, V columns (the vocabulary, or its image columns alone). A setting that is None is left out
of the program when it is traced; numbers are traced, so changing them compiles nothing anew.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

NEVER = -1e30


class Sampling(NamedTuple):
    """How one token is drawn. temperature 0 takes the most likely one."""

    temperature: jax.Array | float = 1.0
    top_p: jax.Array | float | None = None
    top_k: jax.Array | int | None = None


def guide(conditional: jax.Array, unconditional: jax.Array, scale: jax.Array | float) -> jax.Array:
    """Classifier-free guidance, z_u + scale (z_c - z_u) (paper section 3.2)."""
    return unconditional + scale * (conditional - unconditional)


def keep_top_k(logits: jax.Array, k: jax.Array | int) -> jax.Array:
    """Rules out all but the k most likely columns (ties with the k-th stay). [B V] -> [B V]"""
    ordered = jnp.sort(logits, axis=-1, descending=True)
    last = jnp.clip(jnp.asarray(k), 1, logits.shape[-1]) - 1
    return jnp.where(logits >= jnp.take(ordered, last, axis=-1)[..., None], logits, NEVER)


def keep_top_p(logits: jax.Array, p: jax.Array | float) -> jax.Array:
    """Nucleus: rules out all but the smallest set of likely columns whose mass reaches p."""
    ordered = jnp.sort(logits, axis=-1, descending=True)
    mass = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1)
    size = jnp.sum(mass < p, axis=-1, keepdims=True)
    last = jnp.minimum(size, logits.shape[-1] - 1)
    return jnp.where(logits >= jnp.take_along_axis(ordered, last, axis=-1), logits, NEVER)


def draw(keys: jax.Array, logits: jax.Array, sampling: Sampling) -> jax.Array:
    """Draws one column per row with that row's key: keys [B], logits [B V] -> [B]."""
    logits = logits.astype(jnp.float32)
    cool = logits / jnp.maximum(jnp.asarray(sampling.temperature, jnp.float32), 1e-6)
    if sampling.top_k is not None:
        cool = keep_top_k(cool, sampling.top_k)
    if sampling.top_p is not None:
        cool = keep_top_p(cool, sampling.top_p)
    drawn = jax.vmap(jax.random.categorical)(keys, cool)
    return jnp.where(jnp.asarray(sampling.temperature) > 0, drawn, jnp.argmax(logits, axis=-1))
