"""CLIP: two towers whose unit vectors lie near one another where picture and text belong together.

The architecture is OpenAI's to the letter (arXiv 2103.00020, ViT variant), so that its weights and
OpenCLIP's fit. A tower's layers are stacked on a leading axis L and scanned.
B batch, P patches, T positions, D width, N heads, H head size, F mlp, L layers, E embedding.
"""

import hashlib
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import NDArray

from cm3leon_jax.config import Retriever
from cm3leon_jax.models.transformer import Norm
from cm3leon_jax.models.vqgan import fold, unit
from cm3leon_jax.sharding import constrain

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of OpenAI's training pixels, red green blue in [0, 1]
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
CHUNK = 64  # rows that the host functions encode at once


class Rows:
    """Makes the parameters of a network, one row each, and draws all their numbers at once.

    A draw per parameter takes XLA half a second to compile each, on CPU.
    """

    def __init__(self) -> None:
        self.drawn: list[tuple[nnx.Param, float]] = []

    def __call__(self, axes: str, *shape: int, std: float = 0.0) -> nnx.Param:
        """Zeros, until `draw` where std is not 0."""
        made = nnx.Param(jnp.zeros(shape), axes=tuple(axes.split()))
        if std:
            self.drawn.append((made, std))
        return made

    def draw(self, key: jax.Array) -> None:
        """Fills them with normal numbers, cut at 3 sigma."""
        sizes = [made.size for made, _ in self.drawn]
        numbers = jax.random.truncated_normal(key, -3, 3, (sum(sizes),))
        parts = jnp.split(numbers, np.cumsum(sizes)[:-1])
        for (made, std), part in zip(self.drawn, parts):
            made[...] = std * part.reshape(made.shape)


class Blocks(nnx.Module):
    """The residual blocks of a tower, stacked: norm, attention, norm, mlp, all with biases."""

    def __init__(self, layers: int, width: int, heads: int, activation: str, rows: Rows):
        self.activation = activation
        head, std, std_out = width // heads, width**-0.5, (2 * layers * width) ** -0.5

        def row(axes: str, *shape: int, std: float = 0.0) -> nnx.Param:
            return rows(f"layers {axes}", layers, *shape, std=std)

        # Query, key and value of a head stand side by side.
        self.query_key_value = row("embed heads head", width, heads, 3 * head, std=std)
        self.out = row("heads head embed", heads, head, width, std=std_out)
        self.up = row("embed mlp", width, 4 * width, std=2**-0.5 * std)
        self.down = row("mlp embed", 4 * width, width, std=std_out)
        self.query_key_value_bias = row("heads head", heads, 3 * head)
        self.out_bias = row("embed", width)
        self.up_bias = row("mlp", 4 * width)
        self.down_bias = row("embed", width)
        self.attention_norm = Norm("layernorm", (layers, width), "layers embed", affine=True)
        self.mlp_norm = Norm("layernorm", (layers, width), "layers embed", affine=True)

    def run(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        """All layers, x [B T D]; mask [B or 1, 1, T or 1, T] is true where a key may be seen."""
        return jax.lax.scan(lambda x, layer: (layer(x, mask), None), x, self)[0]

    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        """One layer, after the scan has sliced off L."""
        h = self.attention_norm(x)
        h = _project("btd,dnh->btnh", h, self.query_key_value, self.query_key_value_bias)
        query, key, value = jnp.split(constrain(h, "batch", None, "heads", None), 3, axis=-1)
        h = jax.nn.dot_product_attention(query, key, value, mask=mask)
        x = x + _project("btnh,nhd->btd", h, self.out, self.out_bias)

        h = _project("btd,df->btf", self.mlp_norm(x), self.up, self.up_bias)
        is_quick = self.activation == "quick_gelu"
        h = h * jax.nn.sigmoid(1.702 * h) if is_quick else jax.nn.gelu(h, approximate=False)
        h = constrain(h, "batch", None, "mlp")
        x = x + _project("btf,fd->btd", h, self.down, self.down_bias)
        return constrain(x, "batch", None, None)


class ImageTower(nnx.Module):
    """A vision transformer; the class token, first in the row, becomes the picture's vector."""

    def __init__(self, c: Retriever, rows: Rows):
        self.config, pixels, std = c, 3 * c.patch**2, c.width**-0.5
        self.patch_embedding = rows("features embed", pixels, c.width, std=pixels**-0.5)
        self.class_token = rows("embed", c.width, std=std)
        self.positions = rows("seq embed", patches(c) + 1, c.width, std=std)
        self.first_norm = Norm("layernorm", (c.width,), "embed", affine=True)
        self.layers = Blocks(c.layers, c.width, c.heads, c.activation, rows)
        self.final_norm = Norm("layernorm", (c.width,), "embed", affine=True)
        self.projection = rows("embed features", c.width, c.embedding, std=std)

    def __call__(self, images: jax.Array, keep: jax.Array | None) -> jax.Array:
        c, batch, dtype = self.config, len(images), self.config.dtype
        x = images.astype(jnp.float32) / 255
        if x.shape[1:3] != (c.size, c.size):
            x = jax.image.resize(x, (batch, c.size, c.size, 3), "cubic")
        x = fold((x - jnp.array(MEAN)) / jnp.array(DEVIATION), c.patch)
        x = x.reshape(batch, patches(c), -1).astype(dtype)
        x = x @ self.patch_embedding[...].astype(dtype)
        first = jnp.broadcast_to(self.class_token[...].astype(dtype), (batch, 1, c.width))
        x = jnp.concatenate([first, x], axis=1) + self.positions[...].astype(dtype)
        x = constrain(self.first_norm(x), "batch", None, None)
        mask = None
        if keep is not None:
            mask = jnp.pad(keep, ((0, 0), (1, 0)), constant_values=True)[:, None, None]
        x = self.layers.run(x, mask)
        return self.final_norm(x[:, 0]) @ self.projection[...].astype(dtype)


class TextTower(nnx.Module):
    """A causal transformer; the end token, which has read the whole text, becomes its vector."""

    def __init__(self, c: Retriever, pieces: int, rows: Rows):
        self.config, wide = c, c.text_width
        self.embedding = rows("pieces embed", pieces + 2, wide, std=0.02)
        self.positions = rows("seq embed", c.text_tokens, wide, std=0.01)
        self.layers = Blocks(c.text_layers, wide, c.text_heads, c.activation, rows)
        self.final_norm = Norm("layernorm", (wide,), "embed", affine=True)
        self.projection = rows("embed features", wide, c.embedding, std=wide**-0.5)

    def __call__(self, ids: jax.Array) -> jax.Array:
        dtype, length = self.config.dtype, ids.shape[1]
        x = self.embedding[...].astype(dtype)[ids] + self.positions[...].astype(dtype)[:length]
        causal = jnp.tril(jnp.ones((1, 1, length, length), bool))
        x = self.layers.run(constrain(x, "batch", None, None), causal)
        end = ids.argmax(axis=1)  # the end token has the highest id
        last = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
        return self.final_norm(last) @ self.projection[...].astype(dtype)


class CLIP(nnx.Module):
    """Both towers and the learned scale of their scores.

    pieces: ids of the text tokenizer. The id `pieces` starts a text, `pieces` + 1 ends it.
    """

    def __init__(self, c: Retriever, pieces: int, *, rngs: nnx.Rngs):
        self.config, self.pieces, rows = c, pieces, Rows()
        self.image = ImageTower(c, rows)
        self.text = TextTower(c, pieces, rows)
        self.log_scale = nnx.Param(jnp.float32(math.log(1 / 0.07)), axes=())
        rows.draw(rngs.params())

    def encode_images(self, images: jax.Array, keep: jax.Array | None = None) -> jax.Array:
        """uint8 [B Y X 3] -> unit vectors [B E] float32.

        Pictures of another size are resized first. Where keep [B P] is false the patch, counted in
        raster order, is left out: nothing sees it.
        """
        return unit(self.image(images, keep).astype(jnp.float32))

    def encode_texts(self, ids: jax.Array) -> jax.Array:
        """int32 [B T] as `text_batch` makes them -> unit vectors [B E] float32."""
        return unit(self.text(ids).astype(jnp.float32))

    @property
    def scale(self) -> jax.Array:
        """What cosines are multiplied with to give logits."""
        return jnp.exp(self.log_scale[...])


def patches(c: Retriever) -> int:
    """P, the number of patches of a picture."""
    return (c.size // c.patch) ** 2


def text_batch(texts: Sequence[Sequence[int]], c: Retriever, pieces: int) -> NDArray[np.int32]:
    """Piece ids of B texts -> [B T]: start, pieces, end, zeros. Longer texts lose their end.

    Raises ValueError for an id that is no piece.
    """
    rows = np.zeros((len(texts), c.text_tokens), np.int32)
    for row, text in zip(rows, texts):
        ids = text[: c.text_tokens - 2]
        if len(ids) and not 0 <= min(ids) <= max(ids) < pieces:
            raise ValueError(
                f"text pieces {min(ids)} to {max(ids)}: the retriever knows 0 to {pieces - 1};"
                " encode with the text tokenizer that it was trained with"
            )
        row[: len(ids) + 2] = (pieces, *ids, pieces + 1)
    return rows


def embed_pictures(
    clip: CLIP, pictures: NDArray[np.uint8], keep: NDArray[np.bool_] | None = None
) -> NDArray[np.float32]:
    """Unit vectors [B E] of pictures [B Y X 3], on the host; keep [B P] as in `encode_images`."""
    if keep is None:
        keep = np.ones((len(pictures), patches(clip.config)), bool)
    return _in_chunks(_encode_images, clip, pictures, keep)


def embed_texts(clip: CLIP, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """Unit vectors [B E] of the piece ids of B texts, on the host."""
    return _in_chunks(_encode_texts, clip, text_batch(texts, clip.config, clip.pieces))


def document_vectors(
    texts: Sequence[NDArray[np.float32]], images: Sequence[NDArray[np.float32]]
) -> NDArray[np.float32]:
    """One vector [E] per document from those of its texts [n E] and its images [m E]: [B E].

    The mean of the text vector and the image vector, normalised (paper section 2.1), each of them
    the normalised mean over its kind. What a document lacks does not count; zeros if it lacks both.
    """
    both = (_unit(_unit(text.sum(0)) + _unit(image.sum(0))) for text, image in zip(texts, images))
    return np.stack([*both])


def draw_kept(count: int, share: float, seed: int, document: str) -> NDArray[np.bool_]:
    """Which of `count` tokens of a query stay when a `share` is left out (paper section 2.1).

    Each goes by itself with that probability, but one always stays. The draw depends on the
    arguments alone, so that every worker leaves out the same.
    """
    name = int.from_bytes(hashlib.sha256(document.encode()).digest()[:8], "big")
    draws = np.random.default_rng((seed, name)).random(count)
    return draws >= min(share, draws.max(initial=0.0))


_encode_images = jax.jit(CLIP.encode_images)
_encode_texts = jax.jit(CLIP.encode_texts)


def _project(axes: str, x: jax.Array, weight: nnx.Param, bias: nnx.Param) -> jax.Array:
    return jnp.einsum(axes, x, weight[...].astype(x.dtype)) + bias[...].astype(x.dtype)


def _unit(x: NDArray[np.float32]) -> NDArray[np.float32]:
    length = math.sqrt(float(x @ x))
    return x / length if length else x


def _in_chunks(run: Callable[..., jax.Array], clip: CLIP, *rows: NDArray) -> NDArray[np.float32]:
    done = []
    for first in range(0, max(1, len(rows[0])), CHUNK):  # no rows: still an array [0 E]
        chunks = [array[first : first + CHUNK] for array in rows]
        count = len(chunks[0])
        pad = [np.pad(x, [(0, CHUNK - count)] + [(0, 0)] * (x.ndim - 1)) for x in chunks]
        done.append(np.asarray(run(clip, *pad))[:count])
    return np.concatenate(done)
