"""Logit combinators: pure functions, composed in the order combine -> temper -> keep -> draw.

B rows, V columns (the vocabulary, or its image columns alone). A setting that is None is left out
of the program when it is traced; numbers are traced, so changing them compiles nothing anew.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

NEVER = -1e30


class Sampling(NamedTuple):
    """How one token is drawn. temperature 0 takes the most likely one."""

    temperature: jax.Array | float = 1.0
    top_p: jax.Array | float | None = None
    top_k: jax.Array | int | None = None
    repetition: jax.Array | float | None = None  # of texts: the penalty of pieces drawn before


class Contrast(NamedTuple):
    """Contrastive decoding top-k of two streams, CD-K; k = 1 is plain contrastive decoding."""

    k: jax.Array | int
    alpha: jax.Array | float = 0.5


class Guidance(NamedTuple):
    """How the streams of a row become one, by what is given: of one stream nothing, of two `text`
    or `contrast`, of three `text` and `image`."""

    text: jax.Array | float | None = None
    image: jax.Array | float | None = None
    contrast: Contrast | None = None
    interval: tuple[jax.Array | int, jax.Array | int] | None = None
    """From the first to before the second place of an image it holds; elsewhere, the conditional
    stream alone (arXiv:2404.07724, whose interval is of noise levels)."""

    @property
    def streams(self) -> int:
        return 1 + (self.text is not None or self.contrast is not None) + (self.image is not None)


def combine(logits: jax.Array, guidance: Guidance, places: jax.Array | int = -1) -> jax.Array:
    """[G B V] -> [B V]: streams in the order of `guide`, `guide_edit` or `contrast`.

    places: of the code that is drawn in its image, [B] or one, -1 for text.
    """
    if guidance.interval is not None:
        first, end = guidance.interval
        holds = jnp.reshape((places >= first) & (places < end), (-1, 1))
        return jnp.where(holds, combine(logits, guidance._replace(interval=None)), logits[0])
    if guidance.contrast is not None:
        return contrast(logits[0], logits[1], guidance.contrast)
    if guidance.text is None:
        return logits[0]
    if guidance.image is None:
        return guide(logits[0], logits[1], guidance.text)
    return guide_edit(logits[0], logits[1], logits[2], guidance.text, guidance.image)


def guide(conditional: jax.Array, unconditional: jax.Array, scale: jax.Array | float) -> jax.Array:
    """Classifier-free guidance, z_u + scale (z_c - z_u) (paper section 3.2)."""
    return unconditional + scale * (conditional - unconditional)


def guide_edit(
    full: jax.Array,
    image_only: jax.Array,
    unconditional: jax.Array,
    text: jax.Array | float,
    image: jax.Array | float,
) -> jax.Array:
    """z_u + image (z_i - z_u) + text (z - z_i): the picture and the instruction have a scale each
    (InstructPix2Pix, arXiv:2211.09800, equation 3)."""
    return unconditional + image * (image_only - unconditional) + text * (full - image_only)


def contrast(conditional: jax.Array, unconditional: jax.Array, by: Contrast) -> jax.Array:
    """CD-K (paper section 3.2): log p_c - log p_u of the tokens with p_c >= alpha times the k-th
    largest p_c; the rest is ruled out. [B V] -> [B V]"""
    strong, weak = jax.nn.log_softmax(conditional), jax.nn.log_softmax(unconditional)
    least = _least(strong, jnp.ones_like(strong), by.k) + jnp.log(by.alpha)
    return jnp.where(strong >= least, strong - weak, NEVER)


def keep_top_k(logits: jax.Array, k: jax.Array | int) -> jax.Array:
    """Rules out all but the k most likely columns (ties with the k-th stay). [B V] -> [B V]"""
    one = jnp.ones_like(logits)
    return jnp.where(logits >= _least(logits, one, k), logits, NEVER)


def keep_top_p(logits: jax.Array, p: jax.Array | float) -> jax.Array:
    """Nucleus: rules out all but the smallest set of likely columns whose mass reaches p."""
    return jnp.where(logits >= _least(logits, jax.nn.softmax(logits), p), logits, NEVER)


def _least(values: jax.Array, weights: jax.Array, enough: jax.Array | float) -> jax.Array:
    """The greatest value such that those from it on weigh `enough` together, [B 1]; -inf if all do
    not. values [B V] float32, weights [B V].

    Found bit by bit among all floats, which is exact and, unlike sorting, runs on every core.
    """

    def order(values: jax.Array) -> jax.Array:  # floats as unsigned integers of the same order
        bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
        return jnp.where(bits >> 31, ~bits, bits | jnp.uint32(1 << 31))

    ordered = order(values)

    def halve(step: jax.Array, found: jax.Array) -> jax.Array:
        tried = found | (jnp.uint32(1 << 31) >> step.astype(jnp.uint32))
        weight = jnp.sum(weights * (ordered >= tried), axis=-1, keepdims=True)
        return jnp.where(weight >= enough, tried, found)

    found = jax.lax.fori_loop(0, 32, halve, jnp.zeros((len(values), 1), jnp.uint32))
    bits = jnp.where(found >> 31, found & jnp.uint32((1 << 31) - 1), ~found)
    least = jax.lax.bitcast_convert_type(bits, jnp.float32)
    return jnp.where(found == 0, -jnp.inf, least)


def penalize(logits: jax.Array, drawn: jax.Array, penalty: jax.Array | float) -> jax.Array:
    """CTRL's repetition penalty (arXiv:1909.05858, section 4.1): logits of columns drawn before,
    drawn [B V] bool, are divided by it, negative ones multiplied. [B V] -> [B V]"""
    lowered = jnp.where(logits > 0, logits / penalty, logits * penalty)
    return jnp.where(drawn, lowered, logits)


def draw(
    keys: jax.Array, logits: jax.Array, sampling: Sampling, drawn: jax.Array | None = None
) -> jax.Array:
    """Draws one column per row with that row's key: keys [B], logits [B V] -> [B].

    drawn [B V] bool: what the row has drawn before, for a repetition penalty.
    """
    logits = logits.astype(jnp.float32)
    if sampling.repetition is not None and drawn is not None:
        logits = penalize(logits, drawn, sampling.repetition)
    cool = logits / jnp.maximum(jnp.asarray(sampling.temperature, jnp.float32), 1e-6)
    if sampling.top_k is not None:
        cool = keep_top_k(cool, sampling.top_k)
    if sampling.top_p is not None:
        cool = keep_top_p(cool, sampling.top_p)
    drawn = jax.vmap(jax.random.categorical)(keys, cool)
    return jnp.where(jnp.asarray(sampling.temperature) > 0, drawn, jnp.argmax(logits, axis=-1))
