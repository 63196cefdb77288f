"""Any number of samples in batches of one shape, each sample with a key of its own.

A key is made of the seed, the prompt and the sample's number, so a sample is the same alone and
among others. G streams, P prompts, n samples of each.
"""

import zlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from cm3leon_jax.decoding.engine import Prompts, pad_prompts
from cm3leon_jax.models.cache import empty_cache
from cm3leon_jax.models.transformer import Transformer

ROWS = 128  # samples decoded together at most; more run one batch after the other
CACHE = 2**31  # bytes of key-value cache that such a batch may take

Rows = Sequence[NDArray[np.integer]]


def seed_key(seed: int) -> jax.Array:
    """A key of all the bits below 2**63, of which JAX's own takes 32."""
    key = jax.random.key(seed & 2**32 - 1)
    return jax.random.fold_in(key, seed >> 32) if seed >> 32 else key


def draw_in_batches(
    model: Transformer,
    streams: Sequence[Rows],
    decode: Callable[[Prompts, jax.Array, NDArray[np.int64]], jax.Array],
    n: int,
    seed: int,
    new_tokens: int,
    places: Sequence[Rows] | None = None,
    multiple: int = 16,
    most: int = ROWS,
) -> NDArray[np.int32]:
    """What `decode` draws after G streams of P prompts: [P*n ...], those of a prompt together.

    `decode` gets prompts of all streams, the keys of its samples, and their numbers in the result,
    where those that only fill a batch repeat one; new_tokens is how many it draws at most. places
    and multiple as in `pad_prompts`. At most `most` samples lie in a batch. Raises ValueError where
    prompt and new tokens exceed the context.
    """
    c, longest = model.config, max(len(row) for stream in streams for row in stream)
    if longest + new_tokens > c.context:
        raise ValueError(
            f"a prompt of {longest} tokens and {new_tokens} new ones exceed"
            f" model.context={c.context}; shorten the text or put fewer documents in front"
        )
    padded, total = pad_prompts(streams, model.image_start, places, multiple), len(streams[0])
    by_stream = Prompts(*(x.reshape(len(streams), total, *x.shape[1:]) for x in padded))
    slots = padded.tokens.shape[1] + new_tokens
    form = jax.eval_shape(lambda: empty_cache(c, len(streams), slots))
    most = min(
        most, ROWS, max(1, CACHE // sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(form)))
    )
    samples = -(-n // -(-n // most))  # of one prompt in a batch
    prompts = max(1, min(total, most // samples))
    prompt_keys = jax.vmap(jax.random.fold_in, (None, 0))(
        seed_key(seed),
        jnp.array([zlib.crc32(row.tobytes()) for row in streams[0]], jnp.uint32),
    )
    keys = jax.vmap(lambda key: jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(n)))(
        prompt_keys
    )
    drawn = []
    for first in range(0, total, prompts):
        rows = np.minimum(np.arange(first, first + prompts), total - 1)
        batch = Prompts(*(x[:, rows].reshape(-1, *x.shape[2:]) for x in by_stream))
        parts = []
        for begin in range(0, n, samples):
            numbers = np.minimum(np.arange(begin, begin + samples), n - 1)
            of = (rows[:, None] * n + numbers).reshape(-1)
            batch_keys = keys[rows[:, None], numbers].reshape(-1)
            found = np.asarray(decode(batch, batch_keys, of))
            parts.append(found.reshape(prompts, samples, *found.shape[1:]))
        drawn.append(np.concatenate(parts, axis=1)[:, :n])
    whole = np.concatenate(drawn)[:total]
    return whole.reshape(-1, *whole.shape[2:])
