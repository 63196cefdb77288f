"""Attention: over packed rows for training, over a key-value cache for decoding.

B batch, T query positions, S key positions, N heads, K key-value heads, H head size.
"""

import jax
import jax.numpy as jnp


def attend(query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array) -> jax.Array:
    """Causal attention within the segments of a packed row.

    query [B T N H], key and value [B T K H] with K dividing N, segments [B T]; returns [B T N H].
    Softmax in float32. A position sees itself always, so no row is without a key.
    """
    same = segments[:, :, None] == segments[:, None, :]
    causal = jnp.tril(jnp.ones(same.shape[1:], bool))
    return jax.nn.dot_product_attention(query, key, value, mask=(same & causal)[:, None])


def attend_cache(
    query: jax.Array, key: jax.Array, value: jax.Array, start: jax.Array, cursor: jax.Array
) -> jax.Array:
    """Attention of T new positions over a cache that already holds them.

    query [B T N H] at cache slots cursor .. cursor + T - 1, key and value [B S K H]; slots below
    start[b] are left padding. Padding queries see themselves only.
    """
    slots = jnp.arange(key.shape[1])
    places = cursor + jnp.arange(query.shape[1])
    seen = (slots >= start[:, None])[:, None, :] & (slots <= places[:, None])[None]
    seen |= (slots == places[:, None])[None]
    return jax.nn.dot_product_attention(query, key, value, mask=seen[:, None])
