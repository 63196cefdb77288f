"""Speculative Jacobi decoding of one image: the same codes in fewer calls of the model.

A window of draft codes is read in one call. Every draft is then drawn anew from what the model says
after the drafts before it; up to the first draft that this changes, all were drawn behind the right
codes and are final. What is behind stays as the next drafts (Teng et al., arXiv:2410.01699).

A draft drawn from q is to survive under p as often as the two agree, else a code is drawn from what
p has more than q. There that is a rejection test with fresh random numbers; here a place keeps its
key, so that old and new draw add the same Gumbel noise (Wiggers and Hoogeboom, arXiv:2002.09928).
Drafts survive more often so, and the result is what decoding code by code draws with this key.
"""

from functools import partial

import jax
import jax.numpy as jnp

from cm3leon_jax.decoding.engine import SEGMENT, Prompts, prefill
from cm3leon_jax.decoding.logits import Guidance, Sampling, draw
from cm3leon_jax.models.transformer import Transformer

# Codes of a call. Calls per picture of 64 codes with windows of 8, 16, 32, 64 (tiny_emoji): 33.9,
# 30.3, 30.0, 30.0 at temperature 1 and guidance 3; 9.9, 5.9, 4.1, 3.2 at its recipe's 0.3 and 1.5.
WINDOW = 16


@partial(jax.jit, static_argnames=("count", "int8"))
def draw_codes_in_windows(
    model: Transformer,
    prompts: Prompts,
    keys: jax.Array,
    sampling: Sampling,
    guidance: Guidance,
    count: int,
    first: jax.Array | int = 0,
    int8: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Codes [1 count] as `engine.draw_codes` draws them, and how many calls of the model it took.

    The same arguments, for one row, keys [1], since rows advance at paces of their own.
    Up to rounding the codes are the same: a tie that it breaks otherwise can change a draw.
    """
    head, streams = model.head_table()[model.image_start :], guidance.streams
    window, length = min(WINDOW, count), prompts.tokens.shape[1]
    decoder, logits, cache = prefill(model, prompts, guidance, head, 1, count + window, int8, first)

    def choose(logits: jax.Array, index: jax.Array) -> jax.Array:
        folded = jax.vmap(jax.random.fold_in, (None, 0))(keys[0], index)
        return draw(folded, logits, sampling)

    def step(slots: int, carry: tuple) -> tuple:
        final, calls, codes, cache = carry
        at = final - 1 + jnp.arange(window)  # the last final code, and all drafts but one
        read = jax.lax.dynamic_slice(codes, (final - 1,), (window,))
        tokens, places = (jnp.tile(x, (streams, 1)) for x in (read + model.image_start, first + at))
        hidden, cache = model.extend(
            tokens, places, decoder.start, length + final - 1, cache, decoder.table, slots
        )
        logits = decoder.logits(hidden.reshape(-1, hidden.shape[-1]), first + at + 1)
        drawn = choose(logits, at + 1)
        kept = jnp.cumprod(read[1:] == drawn[:-1]).sum()
        # A place that comes into the window begins as its left neighbour.
        codes = jnp.where(jnp.arange(len(codes)) < final, codes, drawn[-1])
        codes = jax.lax.dynamic_update_slice(codes, drawn, (final,))
        return final + kept + 1, calls + 1, codes, cache

    drafts = jnp.broadcast_to(choose(logits, jnp.arange(1)), (count + window,))
    carry = jnp.int32(1), jnp.int32(1), drafts, cache
    for begin in range(0, count, SEGMENT):
        end = min(begin + SEGMENT, count)
        carry = jax.lax.while_loop(
            partial(_is_before, end), partial(step, length + end + window), carry
        )
    return carry[2][None, :count], carry[1]


def _is_before(end: int, carry: tuple) -> jax.Array:
    return carry[0] < end
