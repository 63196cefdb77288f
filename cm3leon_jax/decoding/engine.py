"""Prefill and decode in one jitted function, the key-value cache inside it.

Prompts of unequal length are padded on the left, so that one cursor serves all rows; a row's
learned position is cursor - start. All guidance streams of a row lie in one batch and receive the
same drawn token: stream s of row b is batch row s * B + b. B rows, G streams, T prompt length.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cm3leon_jax.decoding.logits import NEVER, Sampling, draw, guide
from cm3leon_jax.models.transformer import Cache, Transformer, code_index
from cm3leon_jax.tokens.vocabulary import EOSS, PAD


class Prompts(NamedTuple):
    """Left-padded prompts of all streams: tokens [G*B T] int32, start [G*B] int32."""

    tokens: np.ndarray
    start: np.ndarray


def pad_prompts(streams: list[list[np.ndarray]], multiple: int = 16) -> Prompts:
    """Pads G streams of B prompts on the left to one length, a multiple of `multiple`."""
    rows = [row for stream in streams for row in stream]
    length = -(-max(map(len, rows)) // multiple) * multiple
    tokens = np.full((len(rows), length), PAD, np.int32)
    for place, row in zip(tokens, rows):
        place[length - len(row) :] = row
    start = np.array([length - len(row) for row in rows], np.int32)
    return Prompts(tokens, start)


class Decoder(NamedTuple):
    """What the steps of one decode share."""

    model: Transformer
    table: jax.Array  # [V D] input embeddings
    head: jax.Array  # [C D] output embeddings of the columns that may be drawn
    start: jax.Array  # [G*B]

    def extend(
        self, tokens: jax.Array, codes_at: jax.Array, cursor: jax.Array, cache: Cache
    ) -> tuple[jax.Array, Cache]:
        """Logits [G*B C] after the last of tokens [G*B T], and the cache."""
        hidden, cache = self.model.extend(
            tokens, codes_at, self.start, cursor, cache, table=self.table
        )
        logits = jnp.einsum(
            "bd,vd->bv", hidden[:, -1], self.head, preferred_element_type=jnp.float32
        )
        return logits, cache


def _prefill(
    model: Transformer, prompts: Prompts, head: jax.Array, new_tokens: int
) -> tuple[Decoder, jax.Array, Cache]:
    tokens = jnp.asarray(prompts.tokens)
    decoder = Decoder(model, model.embedding_table(), head, jnp.asarray(prompts.start))
    cache = model.empty_cache(tokens.shape[0], tokens.shape[1] + new_tokens)
    codes_at = code_index(tokens, model.image_start)
    logits, cache = decoder.extend(tokens, codes_at, jnp.int32(0), cache)
    return decoder, logits, cache


def _combine(logits: jax.Array, guidance: jax.Array | float | None) -> jax.Array:
    if guidance is None:
        return logits
    conditional, unconditional = jnp.split(logits, 2)
    return guide(conditional, unconditional, guidance)


@partial(jax.jit, static_argnames="count")
def draw_codes(
    model: Transformer,
    prompts: Prompts,
    keys: jax.Array,
    sampling: Sampling,
    guidance: jax.Array | float | None,
    count: int,
) -> jax.Array:
    """Draws exactly `count` image codes after every prompt; keys [B]; returns codes [B count].

    guidance: None for one stream, a scale for two (conditional, unconditional). The head is
    restricted to the image columns, so no other token can be drawn.
    """
    streams = 1 if guidance is None else 2
    head = model.head_table()[model.image_start :]
    decoder, logits, cache = _prefill(model, prompts, head, count)
    length = prompts.tokens.shape[1]

    def step(carry: tuple[jax.Array, Cache], index: jax.Array):
        logits, cache = carry
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
        codes = draw(step_keys, _combine(logits, guidance), sampling)
        tokens = jnp.tile(codes + model.image_start, streams)[:, None]
        codes_at = jnp.full(tokens.shape, index)
        return decoder.extend(tokens, codes_at, length + index, cache), codes

    # The last code needs no step after it.
    (logits, _), codes = jax.lax.scan(step, (logits, cache), jnp.arange(count - 1))
    last_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, count - 1)
    last = draw(last_keys, _combine(logits, guidance), sampling)
    return jnp.concatenate([codes.T, last[:, None]], axis=1)


@partial(jax.jit, static_argnames=("limit", "pieces"))
def draw_text(
    model: Transformer,
    prompts: Prompts,
    keys: jax.Array,
    sampling: Sampling,
    limit: int,
    pieces: int,
) -> jax.Array:
    """Fills a text hole after every prompt, which ends in its sentinel; keys [B].

    Returns ids [B limit], padded with <pad> after the fill. Only the `pieces` that the text
    tokenizer has may be drawn, and <eoss> once there is at least one; a row that reaches the limit
    simply ends there.
    """
    rows = len(keys)
    vocabulary = model.head_table()
    first = model.config.specials
    head = jnp.concatenate([vocabulary[EOSS : EOSS + 1], vocabulary[first : first + pieces]])
    decoder, logits, cache = _prefill(model, prompts, head, limit)
    length = prompts.tokens.shape[1]

    def unfinished(carry: tuple) -> jax.Array:
        index, done, *_ = carry
        return (index < limit) & ~done.all()

    def step(carry: tuple) -> tuple:
        index, done, ids, logits, cache = carry
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
        logits = logits.at[:, 0].add(jnp.where(index == 0, NEVER, 0.0))
        column = draw(step_keys, logits, sampling)
        done = done | (column == 0)
        new = jnp.where(done, PAD, column - 1 + first)
        ids = jax.lax.dynamic_update_index_in_dim(ids, new, index, axis=1)
        tokens = jnp.where(done, EOSS, new)[:, None]
        codes_at = jnp.full(tokens.shape, -1)
        logits, cache = decoder.extend(tokens, codes_at, length + index, cache)
        return index + 1, done, ids, logits, cache

    ids = jnp.full((rows, limit), PAD)
    carry = (jnp.int32(0), jnp.zeros(rows, bool), ids, logits, cache)
    return jax.lax.while_loop(unfinished, step, carry)[2]
