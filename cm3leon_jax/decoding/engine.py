"""Prefill and decode in one jitted function, the key-value cache inside it.

Prompts of unequal length are padded on the left, so that one cursor serves all rows; a row's
learned position is cursor - start. All guidance streams of a row lie in one batch and receive the
same drawn token: stream s of row b is batch row s * B + b. Samples that share a prompt share its
prefill. B rows, P prompts with B / P samples each, G streams, T prompt length, C columns.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from cm3leon_jax.decoding.logits import NEVER, Guidance, Sampling, combine, draw
from cm3leon_jax.models.cache import Cache, map_caches
from cm3leon_jax.models.transformer import Transformer
from cm3leon_jax.tokens.vocabulary import EOSS, PAD

SEGMENT = 256  # tokens drawn before more of the cache is read
GROWTH = 64  # at least, and before it grows, where every layer has its own; each part is compiled
READ = 2048  # tokens of prompts read at once; what more would need lies beside the whole cache


class Prompts(NamedTuple):
    """Left-padded prompts of all streams."""

    tokens: np.ndarray  # [G*P T] int32
    codes_at: np.ndarray  # [G*P T] int32, each code's place in its image, -1 for other tokens
    start: np.ndarray  # [G*P] int32, the first slot that is no padding


def pad_prompts(
    streams: Sequence[Sequence[NDArray[np.integer]]],
    image_start: int,
    places: Sequence[Sequence[NDArray[np.integer]]] | None = None,
    multiple: int = 16,
) -> Prompts:
    """Pads G streams of P prompts on the left to one length, a multiple of `multiple`.

    places: of every id its place in its image, -1 for what is no code; without it, and that is
    right where no image has a hole, codes are counted from the start of their run.
    """
    rows = [row for stream in streams for row in stream]
    if places is None:
        counted: list[Any] = [count_codes(row, image_start) for row in rows]
    else:
        counted = [row for stream in places for row in stream]
    length = -(-max(map(len, rows)) // multiple) * multiple
    tokens = np.full((len(rows), length), PAD, np.int32)
    codes_at = np.full((len(rows), length), -1, np.int32)
    start = np.array([length - len(row) for row in rows], np.int32)
    for index, first in enumerate(start):
        tokens[index, first:], codes_at[index, first:] = rows[index], counted[index]
    return Prompts(tokens, codes_at, start)


def count_codes(ids: NDArray[np.integer], image_start: int) -> NDArray[np.int32]:
    """Each code's place in its unbroken run of codes, -1 for what is no code. [T] -> [T]"""
    at, is_code = np.arange(len(ids)), ids >= image_start
    last_other = np.maximum.accumulate(np.where(is_code, -1, at))
    return np.where(is_code, at - last_other - 1, -1).astype(np.int32)


class Decoder(NamedTuple):
    """What the steps of one decode share."""

    model: Transformer
    table: jax.Array  # [V D] input embeddings
    head: jax.Array  # [C D] output embeddings of the columns that may be drawn
    start: jax.Array  # [G*B]
    guidance: Guidance

    def extend(
        self, tokens: jax.Array, codes_at: jax.Array, cursor: jax.Array, cache: Any, slots: int
    ) -> tuple[jax.Array, Any]:
        """Logits [B C] after the tokens [B], which every stream receives, and the cache."""
        new, at = (jnp.tile(x, self.guidance.streams)[:, None] for x in (tokens, codes_at))
        hidden, cache = self.model.extend(new, at, self.start, cursor, cache, self.table, slots)
        return self.logits(hidden[:, -1], codes_at + 1), cache

    def logits(self, hidden: jax.Array, places: jax.Array | int) -> jax.Array:
        """[G*B D] -> [B C]; places: of the next code in its image, [B] or one."""
        logits = jnp.einsum("bd,cd->bc", hidden, self.head, preferred_element_type=jnp.float32)
        logits = logits.reshape(self.guidance.streams, -1, logits.shape[-1])
        return combine(logits, self.guidance, places)


def prefill(
    model: Transformer,
    prompts: Prompts,
    guidance: Guidance,
    head: jax.Array,
    rows: int,
    new_tokens: int,
    int8: bool,
    place: jax.Array | int = -1,
) -> tuple[Decoder, jax.Array, Any]:
    """The decoder, logits [B C] after the prompts, and the cache; each prompt is read once.

    place: in its image, of the code that comes first.
    """
    table, (count, length) = model.embedding_table(), prompts.tokens.shape
    samples = rows * guidance.streams // count
    size = max(n for n in range(1, count + 1) if count % n == 0 and (n == 1 or n * length <= READ))
    whole = model.empty_cache(count * samples, length + new_tokens, int8)

    def read(cache: Any, numbered: tuple[jax.Array, Prompts]) -> tuple[Any, jax.Array]:
        index, part = numbered
        small = model.empty_cache(size, length, int8)
        tokens, codes_at, start = map(jnp.asarray, part)
        hidden, small = model.read_prompts(tokens, codes_at, start, small, table)

        put = lambda cache, rows: cache.put_rows(rows, index * size * samples, samples)  # noqa: E731
        return map_caches(put, cache, small), hidden

    parts = jax.tree.map(lambda x: jnp.reshape(x, (-1, size, *x.shape[1:])), prompts)
    cache, hidden = jax.lax.scan(read, whole, (jnp.arange(count // size), parts))
    start = jnp.repeat(jnp.asarray(prompts.start), samples)
    decoder = Decoder(model, table, head, start, guidance)
    hidden = hidden.reshape(count, -1)
    return decoder, decoder.logits(jnp.repeat(hidden, samples, axis=0), place), cache


def draw_code(
    decoder: Decoder,
    keys: jax.Array,
    sampling: Sampling,
    first: jax.Array | int,
    length: int,
    slots: int,
    carry: tuple[jax.Array, Any],
    index: jax.Array,
) -> tuple[tuple[jax.Array, Any], jax.Array]:
    """Code number `index` [B] by the logits of the carry, and logits and cache after it."""
    logits, cache = carry
    codes = draw(jax.vmap(jax.random.fold_in, (0, None))(keys, index), logits, sampling)
    places = jnp.broadcast_to(first + index, codes.shape)
    tokens = codes + decoder.model.image_start
    return decoder.extend(tokens, places, length + index, cache, slots), codes


@partial(jax.jit, static_argnames=("count", "int8"))
def draw_codes(
    model: Transformer,
    prompts: Prompts,
    keys: jax.Array,
    sampling: Sampling,
    guidance: Guidance,
    count: int,
    first: jax.Array | int = 0,
    int8: bool = False,
) -> jax.Array:
    """Draws exactly `count` image codes after every prompt; keys [B]; returns codes [B count].

    B is a multiple of the P prompts, whose samples stand together. The codes' places in their image
    count from `first`, a number or [B]. int8: of the cache. The head is restricted to the image
    columns, so no other token can be drawn.
    """
    head = model.head_table()[model.image_start :]
    segment, room = (SEGMENT, count - 1) if model.is_stacked else (max(GROWTH, count // 8), 0)
    decoder, *start = prefill(model, prompts, guidance, head, len(keys), room, int8, first)
    carry = tuple(start)
    length, parts = prompts.tokens.shape[1], []
    for begin in range(0, count - 1, segment):  # the last code needs no step after it
        end = min(begin + segment, count - 1)
        slots = length + end
        step = partial(draw_code, decoder, keys, sampling, first, length, slots)
        grown = carry[0], map_caches(partial(Cache.grow, slots=slots), carry[1])
        carry, codes = jax.lax.scan(step, grown, jnp.arange(begin, end))
        parts.append(codes)
    last = jax.vmap(jax.random.fold_in, (0, None))(keys, count - 1)
    return jnp.concatenate([*parts, draw(last, carry[0], sampling)[None]]).T


@partial(jax.jit, static_argnames=("limit", "pieces", "closings", "int8"))
def draw_text(
    model: Transformer,
    prompts: Prompts,
    keys: jax.Array,
    sampling: Sampling,
    guidance: Guidance,
    limit: int,
    pieces: int,
    int8: bool = False,
    closings: tuple[int, ...] = (EOSS,),
) -> jax.Array:
    """Draws a text after every prompt, which by default ends in the sentinel of a hole; keys [B].

    Returns ids [B limit], padded with <pad> after the text. Only the `pieces` that the text
    tokenizer has may be drawn, and one of `closings` once there is at least one; the first closing
    id is not written, others are. A row that reaches the limit simply ends there.
    """
    decoder, begun = begin_text(
        model, prompts, keys, sampling, guidance, limit, pieces, int8, closings
    )
    step = partial(draw_piece, decoder, keys, sampling, closings, prompts.tokens.shape[1])
    return jax.lax.while_loop(lambda text: text.is_open, step, begun).ids


class TextState(NamedTuple):
    """What a text has been drawn to."""

    at: jax.Array  # how many pieces
    done: jax.Array  # [B] bool
    ids: jax.Array  # [B limit], as `draw_text` returns them
    drawn: jax.Array | None  # [B C] bool, the columns drawn, where they are penalized
    logits: jax.Array  # [B C]
    cache: Any

    @property
    def is_open(self) -> jax.Array:
        return (self.at < self.ids.shape[1]) & ~self.done.all()


def begin_text(
    model: Transformer,
    prompts: Prompts,
    keys: jax.Array,
    sampling: Sampling,
    guidance: Guidance,
    limit: int,
    pieces: int,
    int8: bool,
    closings: tuple[int, ...],
) -> tuple[Decoder, TextState]:
    """The decoder, and the state before the first piece. The head has the closings, then pieces."""
    vocabulary, first = model.head_table(), model.config.specials
    head = jnp.concatenate([vocabulary[jnp.array(closings)], vocabulary[first : first + pieces]])
    decoder, logits, cache = prefill(model, prompts, guidance, head, len(keys), limit, int8)
    drawn = None if sampling.repetition is None else jnp.zeros(logits.shape, bool)
    ids, done = jnp.full((len(keys), limit), PAD), jnp.zeros(len(keys), bool)
    return decoder, TextState(jnp.int32(0), done, ids, drawn, logits, cache)


def draw_piece(
    decoder: Decoder,
    keys: jax.Array,
    sampling: Sampling,
    closings: tuple[int, ...],
    length: int,
    text: TextState,
) -> TextState:
    """One more piece of every row, or its closing."""
    index, done, ids, drawn, logits, cache = text
    ends, written = len(closings), jnp.array([PAD, *closings[1:]])
    logits = logits.at[:, :ends].add(jnp.where(index == 0, NEVER, 0.0))
    step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
    column = draw(step_keys, logits, sampling, drawn)
    if drawn is not None:
        drawn = drawn.at[jnp.arange(len(keys)), column].set(True)
    closed = written[jnp.minimum(column, ends - 1)]
    new = jnp.where(column < ends, closed, column - ends + decoder.model.config.specials)
    new, done = jnp.where(done, PAD, new), done | (column < ends)
    ids = jax.lax.dynamic_update_index_in_dim(ids, new, index, axis=1)
    tokens, codes_at = jnp.where(done, EOSS, new), jnp.full(new.shape, -1)
    slots = length + ids.shape[1]
    logits, cache = decoder.extend(tokens, codes_at, length + index, cache, slots)
    return TextState(index + 1, done, ids, drawn, logits, cache)


@jax.jit
def draw_next(
    model: Transformer,
    prompts: Prompts,
    keys: jax.Array,
    sampling: Sampling,
    guidance: Guidance,
    choices: jax.Array,
) -> jax.Array:
    """Draws one of the ids `choices` [C] after every prompt; keys [B]; returns ids [B]."""
    head = model.head_table()[choices]
    _, logits, _ = prefill(model, prompts, guidance, head, len(keys), 0, False)
    return choices[draw(keys, logits, sampling)]
