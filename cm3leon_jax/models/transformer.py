"""The decoder-only transformer: CM3Leon's form (paper section 2.2), switched to Chameleon's.

A Flax NNX module used as a plain pytree: jit, grad and scan take it directly. Every parameter is
one row `parameter(axes, shape, std)`; layers are stacked on a leading axis L and scanned.
B batch, T query positions, S cache slots, D width, N heads, K key-value heads, H head size,
F mlp, V vocabulary, L layers. Parameters are float32, the computation runs in `config.dtype`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from cm3leon_jax import config
from cm3leon_jax.models.attention import attend
from cm3leon_jax.models.cache import Cache, attend_cache, empty_cache
from cm3leon_jax.models.products import (
    Int8,
    Product,
    Tiles,
    choose_product,
    multiply_int8,
    multiply_tiles,
)
from cm3leon_jax.models.remat import rematerialize
from cm3leon_jax.sharding import constrain

APART = 4 << 20  # parameters from which separate layers save more time on a CPU than they compile

# (query, key, value, layer index, cache) -> (context [B T N H], cache)
Attend = Callable[..., tuple[jax.Array, Any]]


class Frozen(nnx.Variable):
    """An array that belongs to the model but is not trained."""


def parameter(rngs: nnx.Rngs, axes: str, shape: tuple[int, ...], std: float) -> nnx.Param:
    """One trained array: truncated normal (cut at 3 sigma), or zeros where std is 0."""
    if std == 0:
        return nnx.Param(jnp.zeros(shape), axes=tuple(axes.split()))
    value = std * jax.random.truncated_normal(rngs.params(), -3, 3, shape)
    return nnx.Param(value, axes=tuple(axes.split()))


class Norm(nnx.Module):
    """LayerNorm or RMSNorm over the last axis, in float32; without parameters unless affine."""

    def __init__(self, kind: str, shape: tuple[int, ...], axes: str, affine: bool):
        self.kind = kind
        named = tuple(axes.split())
        self.scale = nnx.Param(jnp.ones(shape), axes=named) if affine else None
        has_bias = affine and kind == "layernorm"
        self.bias = nnx.Param(jnp.zeros(shape), axes=named) if has_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        if self.kind == "layernorm":
            y = y - y.mean(axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt((y**2).mean(axis=-1, keepdims=True) + 1e-5)
        if self.scale is not None:
            y = y * self.scale[...]
        if self.bias is not None:
            y = y + self.bias[...]
        return y.astype(x.dtype)


class Layers(nnx.Module):
    """All layers, stacked: attention and mlp, each inside a residual."""

    def __init__(self, c: config.Model, rngs: nnx.Rngs):
        self.config = c
        deep, wide, head, mlp, std = c.layers, c.width, c.head_size, c.mlp, c.init_std
        kv_heads = c.kv_heads or c.heads
        std_out = 0.0 if c.init_residual == "zero" else std * (2 * deep) ** -0.5

        def row(axes: str, shape: tuple[int, ...], std: float = std) -> nnx.Param:
            return parameter(rngs, f"layers {axes}", (deep, *shape), std)

        self.query = row("embed heads head", (wide, c.heads, head))
        self.key = row("embed kv_heads head", (wide, kv_heads, head))
        self.value = row("embed kv_heads head", (wide, kv_heads, head))
        self.out = row("heads head embed", (c.heads, head, wide), std_out)
        self.up = row("embed mlp", (wide, mlp))
        self.gate = row("embed mlp", (wide, mlp)) if c.activation == "swiglu" else None
        self.down = row("mlp embed", (mlp, wide), std_out)

        def norm(shape: tuple[int, ...], axes: str, affine: bool, kind: str = c.norm) -> Norm:
            return Norm(kind, (deep, *shape), f"layers {axes}", affine)

        self.attention_norm = norm((wide,), "embed", c.norm_affine)
        self.mlp_norm = norm((wide,), "embed", c.norm_affine)
        if c.qk_norm:  # always LayerNorm with parameters per head (Chameleon section 2.2)
            self.query_norm = norm((c.heads, head), "heads head", True, "layernorm")
            self.key_norm = norm((kv_heads, head), "kv_heads head", True, "layernorm")

    def weights(self) -> list[tuple[str, nnx.Param, int]]:
        """The weights of products: name, parameter, how many axes are summed."""
        names = ("query", "key", "value", "out", "up", "gate", "down")
        every = [(name, getattr(self, name), 2 if name == "out" else 1) for name in names]
        return [each for each in every if each[1] is not None]

    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        product: Product,
        attend: Attend,
        index: jax.Array,
        cache: Any,
    ) -> tuple[jax.Array, Any]:
        """One layer, after the scan has sliced off L: x [B T D], positions [B T]."""

        def project(axes: str, x: jax.Array, weight: nnx.Param | Int8 | Tiles) -> jax.Array:
            if isinstance(weight, Int8):
                return multiply_int8(axes, x, weight)
            if isinstance(weight, Tiles):
                return multiply_tiles(axes, x, weight)
            return product(axes, x, weight[...].astype(x.dtype))

        after = self.config.norm_placement == "after"
        x = checkpoint_name(x, "layer_input")

        h = x if after else self.attention_norm(x)
        query = project("btd,dnh->btnh", h, self.query)
        key = project("btd,dkh->btkh", h, self.key)
        value = project("btd,dkh->btkh", h, self.value)
        if self.config.qk_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        if self.config.positions == "rotary":
            query = rotate(query, positions, self.config.rotary_base)
            key = rotate(key, positions, self.config.rotary_base)
        query = constrain(query, "batch", None, "heads", None)
        query, key, value = checkpoint_name((query, key, value), "qkv")
        context, cache = attend(query, key, value, index, cache)
        h = project("btnh,nhd->btd", context, self.out)
        x = x + (self.attention_norm(h) if after else h)

        h = x if after else self.mlp_norm(x)
        up = checkpoint_name(project("btd,df->btf", h, self.up), "mlp_up")
        if self.gate is not None:
            gate = checkpoint_name(project("btd,df->btf", h, self.gate), "mlp_up")
            up = up * jax.nn.silu(gate)
        else:
            up = jax.nn.relu(up) if self.config.activation == "relu" else jax.nn.gelu(up)
        h = project("btf,fd->btd", constrain(up, "batch", None, "mlp"), self.down)
        x = x + (self.mlp_norm(h) if after else h)
        return constrain(x, "batch", None, None), cache


class Transformer(nnx.Module):
    """Token embeddings, layers, final norm and head."""

    def __init__(self, c: config.Model, *, rngs: nnx.Rngs, codebook: jax.Array | None = None):
        """codebook [image_codes code_features]: the image tokenizer's vectors, kept frozen."""
        self.config = c
        row = lambda axes, *shape, std: parameter(rngs, axes, shape, std)  # noqa: E731
        self.embedding = row("vocab embed", c.vocabulary, c.width, std=c.init_std)
        if not c.tie_embeddings:
            self.head = row("vocab embed", c.vocabulary, c.width, std=c.init_std)
        if c.positions == "learned":
            self.positions = row("seq embed", c.context, c.width, std=c.position_std)
        if c.code_positions:
            self.code_positions = row("seq embed", c.image_tokens, c.width, std=c.position_std)
        if c.code_features:
            shape = (c.image_codes, c.code_features)
            codebook = jnp.zeros(shape) if codebook is None else codebook
            if codebook.shape != shape:
                raise ValueError(
                    f"model.code_features: the codebook has shape {codebook.shape},"
                    f" the model wants {shape} = (image_codes, code_features)"
                )
            self.codebook = Frozen(codebook.astype(jnp.float32), axes=("codes", "features"))
            self.code_projection = row("features embed", c.code_features, c.width, std=c.init_std)
        self.layers: Any = Layers(c, rngs)  # or a list of them, one each: `for_decoding`
        self.final_norm = Norm(c.norm, (c.width,), "embed", c.norm_affine)

    def __call__(
        self, tokens: jax.Array, segments: jax.Array, positions: jax.Array, codes_at: jax.Array
    ) -> jax.Array:
        """Hidden states [B T D] of packed rows; all [B T].

        codes_at is each code's place in its image, -1 elsewhere; read only with `code_positions`.
        """

        def within_row(query: jax.Array, key: jax.Array, value: jax.Array, _: Any, cache: None):
            return attend(query, key, value, segments), cache

        table = self.embedding_table()
        x = self._embed(table, tokens, positions, codes_at)
        product = choose_product(self.config.quantize)
        return self._run(x, positions, product, within_row, None)[0]

    def extend(
        self,
        tokens: jax.Array,
        codes_at: jax.Array,
        start: jax.Array,
        cursor: jax.Array,
        cache: Cache,
        table: jax.Array,
        slots: int,
    ) -> tuple[jax.Array, Any]:
        """Hidden states [B T D] of the next T tokens, and the cache that now holds them.

        tokens [B T] go to slots cursor .. cursor + T - 1, all below `slots`, which is how many of
        the cache are read; codes_at [B T] is each code's place in its image, -1 for text; start [B]
        is the first slot of each left-padded row.
        """

        def over_cache(query: Any, key: Any, value: Any, layer: Any, cache: Cache):
            cache = cache.write(key, value, cursor, layer)
            return attend_cache(query, cache.read(slots, layer), start, cursor), cache

        places = jnp.maximum(cursor + jnp.arange(tokens.shape[1]) - start[:, None], 0)
        x = self._embed(table, tokens, places, codes_at)
        return self._run(x, places, jnp.einsum, over_cache, cache)

    def read_prompts(
        self,
        tokens: jax.Array,
        codes_at: jax.Array,
        start: jax.Array,
        cache: Cache,
        table: jax.Array,
    ) -> tuple[jax.Array, Any]:
        """`extend` for the first tokens [B T] of an empty cache, by training's attention.

        The hidden states [B D] are those of the last token.
        """
        slots = jnp.arange(tokens.shape[1])
        segments = (slots >= start[:, None]).astype(jnp.int32)

        def within_row(query: Any, key: Any, value: Any, layer: Any, cache: Cache):
            return attend(query, key, value, segments), cache.write(key, value, 0, layer)

        places = jnp.maximum(slots - start[:, None], 0)
        x = self._embed(table, tokens, places, codes_at)
        x, cache = self._run_layers(x, places, jnp.einsum, within_row, cache)
        return self.final_norm(x[:, -1]), cache

    def for_decoding(self, int8: bool = False, donate: bool = False) -> "Transformer":
        """This model with its weights in the type that computes, or those of the layers in int8.

        A decode reads every weight once a token, so their bytes are its time. Norms stay float32.
        On one CPU the layers of a model that exceeds its caches stand apart, as XLA would copy
        slices of stacked weights and caches at every token: half of its time at batch 8.
        donate: this model is of no use afterwards. Its arrays are freed as soon as others stand
        for them, so that at most one is in memory twice.
        """

        def instead(old: jax.Array, new: Any) -> Any:
            if donate and new is not old:
                jax.block_until_ready(new)
                old.delete()
            return new

        def narrow(path: Any, x: jax.Array) -> jax.Array:
            is_kept = "norm" in jax.tree_util.keystr(path) or x.dtype == dtype
            return x if is_kept else instead(x, x.astype(dtype))

        deep, dtype = self.config.layers, jnp.dtype(self.config.dtype)
        is_apart = _on_one_cpu(self.embedding[...]) and self.config.parameters >= APART
        model = jax.tree.map(lambda x: x, self)  # another module of the same arrays
        weights: dict[str, Any] = {}
        for name, weight, summed in model.layers.weights() if int8 or is_apart else ():
            whole = weight[...]
            if int8:
                new: Any = Int8.of(whole, tuple(range(1, summed + 1)))
                new = _each_layer(new, deep) if is_apart else new
            else:
                new = [Tiles.of(whole[i].astype(dtype), summed) for i in range(deep)]
            weights[name] = instead(whole, new)
            setattr(model.layers, name, None)
        model = jax.tree_util.tree_map_with_path(narrow, model)
        if is_apart:
            model.layers = nnx.List(_each_layer(model.layers, deep))
        for name, new in weights.items():
            for i, layer in enumerate(model.layers if is_apart else [model.layers]):
                setattr(layer, name, nnx.data(new[i] if is_apart else new))
        return model

    @property
    def is_stacked(self) -> bool:
        """Whether the layers, and so their cache, are stacked and scanned."""
        return isinstance(self.layers, Layers)

    def empty_cache(self, batch: int, slots: int, int8: bool = False) -> Any:
        """A cache of zeros for `extend`: one, or where the layers stand apart one for each."""
        stacked = empty_cache(self.config, batch, slots, int8)
        return stacked if self.is_stacked else _each_layer(stacked, self.config.layers)

    @property
    def image_start(self) -> int:
        return self.config.specials + self.config.text_pieces

    def embedding_table(self) -> jax.Array:
        """Input embeddings [V D]; an image code's row is its own plus its projected codebook
        vector, so that codes that look alike start alike."""
        table = self.embedding[...]
        if self.config.code_features:
            codes = jax.lax.stop_gradient(self.codebook[...]) @ self.code_projection[...]
            table = table.at[self.image_start :].add(codes)
        return table.astype(self.config.dtype)

    def head_table(self) -> jax.Array:
        """Output embeddings [V D]."""
        if self.config.tie_embeddings:
            return self.embedding_table()
        return self.head[...].astype(self.config.dtype)

    def _embed(
        self, table: jax.Array, tokens: jax.Array, positions: jax.Array, codes_at: jax.Array
    ) -> jax.Array:
        x = table[tokens]
        if self.config.positions == "learned":
            x = x + self.positions[...].astype(x.dtype)[positions]
        if self.config.code_positions:
            place = self.code_positions[...].astype(x.dtype)[jnp.maximum(codes_at, 0)]
            x = x + jnp.where(codes_at[..., None] >= 0, place, 0)
        return constrain(x, "batch", None, None)

    def _run(
        self, x: jax.Array, positions: jax.Array, product: Product, attend: Attend, cache: Any
    ) -> tuple[jax.Array, Any]:
        x, cache = self._run_layers(x, positions, product, attend, cache)
        return self.final_norm(x), cache

    def _run_layers(
        self, x: jax.Array, positions: jax.Array, product: Product, attend: Attend, cache: Any
    ) -> tuple[jax.Array, Any]:
        def body(carry: tuple[jax.Array, Any], layer: tuple[Layers, jax.Array]):
            layers, index = layer
            return layers(carry[0], positions, product, attend, index, carry[1]), None

        if not self.is_stacked:
            caches = [None] * len(self.layers) if cache is None else list(cache)
            for i, layer in enumerate(self.layers):
                x, caches[i] = layer(x, positions, product, attend, None, caches[i])
            return x, caches
        body = rematerialize(body, self.config.remat)
        indices = jnp.arange(self.config.layers)
        return jax.lax.scan(body, (x, cache), (self.layers, indices))[0]


def _each_layer(stacked: Any, deep: int) -> list[Any]:
    """What is stacked on a leading axis L, layer by layer."""
    return [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(deep)]


def _on_one_cpu(x: jax.Array) -> bool:
    """Whether an array lies on a CPU alone; one that is being traced lies nowhere."""
    return not isinstance(x, jax.core.Tracer) and [d.platform for d in x.devices()] == ["cpu"]


def rotate(x: jax.Array, positions: jax.Array, base: float) -> jax.Array:
    """Rotary position embedding: x [B T N H], positions [B T]; halves of H are paired."""
    half = x.shape[-1] // 2
    frequencies = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[:, :, None, None] * frequencies
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
