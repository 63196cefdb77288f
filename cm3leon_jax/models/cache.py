"""The key-value cache of decoding, in the model's own type or in int8.

B batch, T query positions, S slots, N heads, K key-value heads, H head size, L layers. Slots are
shared by all rows: prompts end together. Heads stand before slots, as the products want them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cm3leon_jax import config
from cm3leon_jax.models.products import Int8


class Cache(NamedTuple):
    """Keys and values of all layers; of one, without L and written without its index."""

    keys: jax.Array  # [L B K S H]
    values: jax.Array  # [L B K S H]
    key_scales: jax.Array | None = None  # [L B K S] float32; an int8 key is multiplied by its scale
    value_scales: jax.Array | None = None

    @property
    def _batch(self) -> int:
        """The axis B."""
        return self.keys.ndim - 4

    def write(
        self, key: jax.Array, value: jax.Array, cursor: jax.Array | int, layer: jax.Array | None
    ) -> "Cache":
        """This cache with a layer's key and value [B T K H] at slots cursor .. cursor + T - 1."""

        def put(store: Any, new: jax.Array) -> jax.Array:
            new, at = new.astype(store.dtype), (0, 0, cursor, 0)[: new.ndim]
            if layer is not None:
                new, at = new[None], (layer, *at)
            return jax.lax.dynamic_update_slice(store, new, at)

        key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)
        if self.key_scales is None:
            return Cache(put(self.keys, key), put(self.values, value))
        (key, key_scale), (value, value_scale) = Int8.of(key, (3,)), Int8.of(value, (3,))
        return Cache(
            put(self.keys, key),
            put(self.values, value),
            put(self.key_scales, key_scale),
            put(self.value_scales, value_scale),
        )

    def read(self, slots: int, layer: jax.Array | None) -> "Cache":
        """The first `slots` slots of one layer."""
        one = self if layer is None else jax.tree.map(lambda x: x[layer], self)
        return jax.tree.map(lambda x: x[:, :, :slots], one)

    def put_rows(self, rows: "Cache", first: jax.Array | int, copies: int) -> "Cache":
        """This cache with rows of another, each `copies` times, from row `first` on."""

        def put(store: jax.Array, new: jax.Array) -> jax.Array:
            at: list[Any] = [0] * store.ndim
            at[self._batch] = first
            new = jnp.repeat(new, copies, axis=self._batch)
            return jax.lax.dynamic_update_slice(store, new, at)

        return jax.tree.map(put, self, rows)

    def grow(self, slots: int) -> "Cache":
        """This cache with at least `slots` slots, new ones zeros."""

        def pad(x: jax.Array) -> jax.Array:
            around = [(0, 0)] * x.ndim
            around[self._batch + 2] = (0, max(slots - x.shape[self._batch + 2], 0))
            return jnp.pad(x, around)

        return jax.tree.map(pad, self)


def empty_cache(c: config.Model, batch: int, slots: int, int8: bool = False) -> Cache:
    """A cache of zeros, [L B K slots H], for `batch` rows of at most `slots` tokens."""
    shape = (c.layers, batch, c.kv_heads or c.heads, slots, c.head_size)
    if not int8:
        return Cache(jnp.zeros(shape, c.dtype), jnp.zeros(shape, c.dtype))
    stores = jnp.zeros(shape, jnp.int8), jnp.zeros(shape, jnp.int8)
    return Cache(*stores, jnp.zeros(shape[:-1]), jnp.zeros(shape[:-1]))


def map_caches(change: Callable[..., Cache], *caches: Any) -> Any:
    """What `change` makes of the one cache of stacked layers, or of every layer's."""
    return jax.tree.map(change, *caches, is_leaf=lambda x: isinstance(x, Cache))


def attend_cache(query: jax.Array, cache: Cache, start: jax.Array, cursor: jax.Array) -> jax.Array:
    """Attention of T new positions over one layer's cache, which already holds them.

    query [B T N H] at slots cursor .. cursor + T - 1; slots below start [B] are left padding.
    Padding queries see themselves only. Softmax in float32. Returns [B T N H].
    """
    (batch, length, _, head), kv_heads = query.shape, cache.keys.shape[1]
    slots = jnp.arange(cache.keys.shape[2])
    places = cursor + jnp.arange(length)
    seen = (slots >= start[:, None])[:, None, :] & (slots <= places[:, None])[None]
    seen |= (slots == places[:, None])[None]

    queries = query.reshape(batch, length, kv_heads, -1, head).transpose(0, 2, 3, 1, 4)
    rows = queries.reshape(batch, kv_heads, -1, head)  # queries of all heads that share keys
    keys, values = cache.keys.astype(query.dtype), cache.values.astype(query.dtype)
    scores = jnp.einsum("bkqh,bksh->bkqs", rows, keys, preferred_element_type=jnp.float32)
    if cache.key_scales is not None:
        scores = scores * cache.key_scales[:, :, None]
    scores = scores.reshape(*queries.shape[:4], -1) * head**-0.5
    shares = jax.nn.softmax(jnp.where(seen[:, None, None], scores, jnp.finfo(jnp.float32).min))
    shares = shares.reshape(*rows.shape[:3], -1)
    if cache.value_scales is not None:
        shares = shares * cache.value_scales[:, :, None]
    context = jnp.einsum("bkqs,bksh->bkqh", shares.astype(query.dtype), values)
    return context.reshape(queries.shape).transpose(0, 3, 1, 2, 4).reshape(query.shape)
