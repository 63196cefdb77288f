"""Pictures to codes and back on the host: uint8 [B Y X 3] <-> int32 [B, image_tokens].

Runs the image tokenizer in chunks of one shape, so that any number of pictures compiles once and
none depends on how many others there are.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from cm3leon_jax.models.vqgan import VQGAN

CHUNK = 64  # pictures, or fewer where they have more than PIXELS together
PIXELS = 2**19  # the decoder holds about a kilobyte for each


def encode_pictures(tokenizer: VQGAN, pictures: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Codes in raster order, [B, image_tokens]."""
    return _in_chunks(_encode, tokenizer, pictures)


def decode_codes(tokenizer: VQGAN, codes: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Pictures of codes [B, image_tokens]."""
    side = round(codes.shape[1] ** 0.5)
    return _in_chunks(_decode, tokenizer, codes.reshape(len(codes), side, side))


@jax.jit
def _encode(tokenizer: VQGAN, pictures: jax.Array) -> jax.Array:
    codes = tokenizer.encode(pictures.astype(jnp.float32) / 127.5 - 1)
    return codes.reshape(len(codes), -1)


@jax.jit
def _decode(tokenizer: VQGAN, codes: jax.Array) -> jax.Array:
    return jnp.round((tokenizer.decode(codes) + 1) * 127.5).astype(jnp.uint8)


def _in_chunks(run: Callable[..., jax.Array], tokenizer: VQGAN, rows: NDArray) -> NDArray[Any]:
    done, size = [], min(CHUNK, max(1, PIXELS // tokenizer.size**2))
    for first in range(0, len(rows), size):
        chunk = rows[first : first + size]
        padding = [(0, size - len(chunk))] + [(0, 0)] * (rows.ndim - 1)
        done.append(np.asarray(run(tokenizer, np.pad(chunk, padding)))[: len(chunk)])
    return np.concatenate(done)
