"""Combinators equal NumPy written from their equations; kept sets are exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3leon_jax.decoding.logits import (
    NEVER,
    Contrast,
    Guidance,
    Sampling,
    combine,
    draw,
    keep_top_k,
    keep_top_p,
    penalize,
)

# Without subnormal numbers: XLA takes them for 0 on CPU, so that two of them are a tie.
numbers = st.floats(-8, 8, width=32, allow_subnormal=False)
logits = st.sampled_from((2, 5, 12)).flatmap(
    lambda n: st.lists(numbers, min_size=n, max_size=n, unique=True)
)
top_k, top_p = jax.jit(keep_top_k), jax.jit(keep_top_p)


def streams(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2, (count, 3, 9)).astype(np.float32)


def log_softmax(x: np.ndarray) -> np.ndarray:
    return (
        x
        - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - x.max(-1, keepdims=True)
    )


@given(logits, st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_top_k_keeps_the_k_largest(values, k):
    kept = np.asarray(top_k(jnp.array([values]), k))[0] > NEVER
    assert set(np.flatnonzero(kept)) == set(np.argsort(values)[::-1][:k])


@given(logits, st.floats(0.05, 1.0))
@settings(max_examples=60, deadline=None)
def test_top_p_keeps_the_smallest_set_that_reaches_p(values, p):
    kept = np.asarray(top_p(jnp.array([values]), p))[0] > NEVER
    probabilities = np.exp(np.array(values) - max(values))
    probabilities /= probabilities.sum()
    order = np.argsort(values)[::-1]
    assert set(np.flatnonzero(kept)) == set(order[: kept.sum()])
    assert probabilities[kept].sum() >= p - 1e-4
    assert probabilities[order[: kept.sum() - 1]].sum() < p + 1e-4


def test_what_is_ruled_out_stays_out_of_top_p_and_top_k():
    ruled = jnp.array([[NEVER, 1.0, NEVER, 0.0]])
    for kept in (keep_top_p(ruled, 0.999), keep_top_k(ruled, 2)):
        np.testing.assert_array_equal(np.asarray(kept)[0] > NEVER, [False, True, False, True])


def test_two_streams_are_the_equation_of_the_paper():
    z, z_u = streams(2)
    given = combine(jnp.array([z, z_u]), Guidance(text=2.5))
    np.testing.assert_allclose(given, z_u + 2.5 * (z - z_u), rtol=1e-5)


def test_three_streams_have_a_scale_for_picture_and_text():
    z, z_i, z_u = streams(3)
    given = combine(jnp.array([z, z_i, z_u]), Guidance(text=7.5, image=1.5))
    np.testing.assert_allclose(
        given, z_u + 1.5 * (z_i - z_u) + 7.5 * (z - z_i), rtol=1e-4, atol=1e-5
    )
    # Both scales at 1 are plain conditional sampling.
    plain = combine(jnp.array([z, z_i, z_u]), Guidance(text=1.0, image=1.0))
    np.testing.assert_allclose(plain, z, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("k", [1, 3, 9])
@pytest.mark.parametrize("alpha", [0.1, 0.5])
def test_cd_k_is_its_equation(k, alpha):
    strong, weak = streams(2, seed=k)
    given = np.asarray(
        combine(jnp.array([strong, weak]), Guidance(contrast=Contrast(jnp.int32(k), alpha)))
    )
    for row in range(3):
        p_c = np.exp(log_softmax(strong[row]))
        kept = p_c >= alpha * np.sort(p_c)[::-1][k - 1]
        np.testing.assert_array_equal(given[row] > NEVER, kept)
        score = log_softmax(strong[row]) - log_softmax(weak[row])
        np.testing.assert_allclose(given[row][kept], score[kept], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("guidance", [Guidance(text=2.5), Guidance(contrast=Contrast(2))])
def test_outside_its_interval_guidance_leaves_the_conditional_stream(guidance):
    z, z_u = streams(2)
    within = guidance._replace(interval=(jnp.int32(3), jnp.int32(7)))
    mixed = np.asarray(combine(jnp.array([z, z_u]), guidance))
    for places in ([2, 3, 6], [7, -1, 5]):
        inside = np.array([[3 <= place < 7] for place in places])
        given = combine(jnp.array([z, z_u]), within, jnp.array(places))
        np.testing.assert_array_equal(given, np.where(inside, mixed, z))
    np.testing.assert_array_equal(combine(jnp.array([z, z_u]), within, 2), z)


def test_a_penalty_divides_positive_and_multiplies_negative_logits_of_what_was_drawn():
    logits = streams(1)[0]
    drawn = np.random.default_rng(1).random(logits.shape) < 0.5
    expected = logits.copy()
    for row, column in zip(*np.nonzero(drawn)):
        value = logits[row, column]
        expected[row, column] = value / 1.2 if value > 0 else value * 1.2
    np.testing.assert_allclose(penalize(logits, drawn, 1.2), expected, rtol=1e-6)
    # A draw penalizes before it cools: of two equal columns the one drawn before loses.
    keys, even = jax.random.split(jax.random.key(0), 2), jnp.array([[2.0, 2.0], [-2.0, -2.0]])
    cold = Sampling(1e-3, repetition=jnp.float32(1.2))
    assert draw(keys, even, cold, jnp.array([[True, False]] * 2)).tolist() == [1, 1]
    assert draw(keys, even, cold, jnp.array([[False, True]] * 2)).tolist() == [0, 0]


def test_guidance_counts_its_streams():
    assert Guidance().streams == 1
    assert Guidance(text=1.5).streams == 2
    assert Guidance(contrast=Contrast(4)).streams == 2
    assert Guidance(text=7.5, image=1.5).streams == 3


def test_draws_follow_the_softmax():
    scores = jnp.log(jnp.array([0.5, 0.3, 0.2]))
    keys = jax.random.split(jax.random.key(0), 4000)
    many = jnp.broadcast_to(scores, (4000, 3))
    for temperature in (1.0, 0.5):
        drawn = np.asarray(draw(keys, many, Sampling(temperature)))
        expected = np.array([0.5, 0.3, 0.2]) ** (1 / temperature)
        shares = np.bincount(drawn, minlength=3) / 4000
        np.testing.assert_allclose(shares, expected / expected.sum(), atol=0.03)
    assert not np.any(np.asarray(draw(keys, many, Sampling(0.0))))
