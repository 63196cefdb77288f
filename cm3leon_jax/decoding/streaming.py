"""Images row by row and texts piece by piece, for those who watch: one jitted call for each.

The steps are those of `engine`, so that what comes out is the same as without a listener.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from cm3leon_jax.decoding.engine import (
    Decoder,
    Prompts,
    TextState,
    begin_text,
    draw_code,
    draw_piece,
    prefill,
)
from cm3leon_jax.decoding.logits import Guidance, Sampling
from cm3leon_jax.models.transformer import Transformer
from cm3leon_jax.tokens.vocabulary import EOSS

Carry = tuple[jax.Array, Any]


def stream_codes(
    model: Transformer,
    prompts: Prompts,
    keys: jax.Array,
    sampling: Sampling,
    guidance: Guidance,
    count: int,
    first: int = 0,
    int8: bool = False,
) -> Iterator[NDArray[np.int32]]:
    """`engine.draw_codes` for one image, of which it gives what there is: [B n] after each row."""
    parts, *begun = _begin_codes(model, prompts, keys, guidance, count, first, int8)
    decoder = Decoder(model, *parts)
    side, length = round(model.config.image_tokens**0.5), prompts.tokens.shape[1]
    carry, done = tuple(begun), np.zeros((len(keys), 0), np.int32)
    while done.shape[1] < count:
        row = min(side - (first + done.shape[1]) % side, count - done.shape[1])
        numbers = jnp.arange(done.shape[1], done.shape[1] + row)
        slots = length + count
        carry, codes = _draw_row(decoder, keys, sampling, first, length, slots, carry, numbers)
        done = np.concatenate([done, codes.T], axis=1)
        yield done


def stream_text(
    model: Transformer,
    prompts: Prompts,
    keys: jax.Array,
    sampling: Sampling,
    guidance: Guidance,
    limit: int,
    pieces: int,
    int8: bool = False,
    closings: tuple[int, ...] = (EOSS,),
) -> Iterator[NDArray[np.int32]]:
    """`engine.draw_text`, of which it gives what there is: [B limit] after each piece."""
    parts, text = _begin_text(
        model, prompts, keys, sampling, guidance, limit, pieces, int8, closings
    )
    decoder = Decoder(model, *parts)
    while text.is_open:
        text = _draw_piece(decoder, keys, sampling, closings, prompts.tokens.shape[1], text)
        yield np.array(text.ids)  # a copy: the next call writes into the state


@partial(jax.jit, static_argnames=("count", "int8"))
def _begin_codes(
    model: Transformer,
    prompts: Prompts,
    keys: jax.Array,
    guidance: Guidance,
    count: int,
    first: int,
    int8: bool,
) -> tuple[tuple[Any, ...], jax.Array, Any]:
    head = model.head_table()[model.image_start :]
    decoder, *begun = prefill(model, prompts, guidance, head, len(keys), count, int8, first)
    return decoder[1:], *begun  # the model would be copied


@partial(jax.jit, static_argnames=("length", "slots"), donate_argnames=("carry",))
def _draw_row(
    decoder: Decoder,
    keys: jax.Array,
    sampling: Sampling,
    first: int,
    length: int,
    slots: int,
    carry: Carry,
    numbers: jax.Array,
) -> tuple[Carry, jax.Array]:
    step = partial(draw_code, decoder, keys, sampling, first, length, slots)
    return jax.lax.scan(step, carry, numbers)


@partial(jax.jit, static_argnames=("limit", "pieces", "int8", "closings"))
def _begin_text(
    model: Transformer,
    prompts: Prompts,
    keys: jax.Array,
    sampling: Sampling,
    guidance: Guidance,
    limit: int,
    pieces: int,
    int8: bool,
    closings: tuple[int, ...],
) -> tuple[tuple[Any, ...], TextState]:
    decoder, text = begin_text(
        model, prompts, keys, sampling, guidance, limit, pieces, int8, closings
    )
    return decoder[1:], text


@partial(jax.jit, static_argnames=("closings", "length"), donate_argnames=("text",))
def _draw_piece(
    decoder: Decoder,
    keys: jax.Array,
    sampling: Sampling,
    closings: tuple[int, ...],
    length: int,
    text: TextState,
) -> TextState:
    return draw_piece(decoder, keys, sampling, closings, length, text)
