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
    return _in_blocks(query, key, value, segments)


def _in_blocks(
    query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array
) -> jax.Array:
    """By XLA, one block of queries at a time over the keys up to the block's end.

    Nearly half of the products lie above the diagonal and are left out: at T = 1024 forward and
    backward take 143 ms of a CPU core, `jax.nn.dot_product_attention` 267 ms.
    """
    length, heads, head = query.shape[1:]
    groups = heads // key.shape[2]
    size = max(128, -(-length // 8))  # few blocks, as each is compiled
    queries = query.reshape(*query.shape[:2], -1, groups, head).transpose(0, 2, 3, 1, 4)
    keys, values = key.swapaxes(1, 2), value.swapaxes(1, 2)
    contexts = []
    for start in range(0, length, size):
        end = min(start + size, length)
        scores = jnp.einsum(
            *("bkgth,bksh->bkgts", queries[..., start:end, :], keys[:, :, :end]),
            preferred_element_type=jnp.float32,
        )
        seen = segments[:, start:end, None] == segments[:, None, :end]
        seen &= jnp.arange(start, end)[:, None] >= jnp.arange(end)
        scores = jnp.where(seen[:, None, None], scores * head**-0.5, jnp.finfo(jnp.float32).min)
        shares = jax.nn.softmax(scores).astype(value.dtype)
        contexts.append(jnp.einsum("bkgts,bksh->bkgth", shares, values[:, :, :end]))
    return jnp.concatenate(contexts, axis=3).transpose(0, 3, 1, 2, 4).reshape(query.shape)


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
