"""Speculative Jacobi decoding draws what decoding code by code does, in fewer calls."""

from dataclasses import replace
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.stats import chisquare

from cm3leon_jax import config
from cm3leon_jax.decoding.engine import Prompts, count_codes, draw_codes, pad_prompts
from cm3leon_jax.decoding.jacobi import draw_codes_in_windows
from cm3leon_jax.decoding.logits import Guidance, Sampling
from cm3leon_jax.models.transformer import Transformer
from cm3leon_jax.tokens.vocabulary import BREAK, EOS

PROMPTS = [np.array([EOS, *range(20, 26), BREAK]), np.array([EOS, 5, BREAK])]


@pytest.fixture
def windows(monkeypatch):
    """Windows of 4 codes, segments of 8."""
    for name in ("jacobi.WINDOW", "jacobi.SEGMENT"):
        monkeypatch.setattr(f"cm3leon_jax.decoding.{name}", 4 if "WINDOW" in name else 8)
    draw_codes_in_windows.clear_cache()
    yield
    draw_codes_in_windows.clear_cache()


def make(small: config.Experiment, **changes) -> Transformer:
    return Transformer(replace(small.model, **changes), rngs=nnx.Rngs(0))


def prompts_of(model: Transformer, guidance: Guidance) -> Prompts:
    streams = [[row] for row in PROMPTS[: guidance.streams]]
    return pad_prompts(streams, model.image_start)


def read_in_one_go(model: Transformer, prompt: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Logits [B count C] of the codes [B count] after one prompt, without cache or padding."""
    ids = np.concatenate(
        [np.tile(prompt, (len(codes), 1)), codes + model.image_start], axis=1, dtype=np.int32
    )
    places = np.stack([count_codes(row, model.image_start) for row in ids])
    at = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    hidden = model(jnp.asarray(ids), jnp.ones_like(ids), at, places)
    return np.asarray(hidden[:, len(prompt) - 1 : -1] @ model.head_table()[model.image_start :].T)


@pytest.mark.optimized
def test_the_codes_are_those_of_decoding_code_by_code(small, windows):
    model = make(small, image_tokens=16, code_positions=True)
    guidance = Guidance(jnp.float32(3), interval=(jnp.int32(3), jnp.int32(11)))
    prompts, calls = prompts_of(model, guidance), []
    for seed, temperature in product(range(3), (0.0, 0.5)):
        given = model, prompts, jax.random.key(seed)[None], Sampling(jnp.float32(temperature))
        one_by_one = draw_codes(*given, guidance, 16)
        codes, count = draw_codes_in_windows(*given, guidance, 16)
        np.testing.assert_array_equal(codes, one_by_one)
        calls.append(int(count))
        if (seed, temperature) == (
            0,
            0,
        ):  # greedy, and guided between the places of the interval only
            both = [read_in_one_go(model, prompt, np.asarray(codes))[0] for prompt in PROMPTS]
            mixed = both[1] + 3 * (both[0] - both[1])
            inside = ((np.arange(16) >= 3) & (np.arange(16) < 11))[:, None]
            logits = np.where(inside, mixed, both[0])
            chosen = np.take_along_axis(logits, np.asarray(codes)[0][:, None], axis=1)[:, 0]
            np.testing.assert_allclose(chosen, logits.max(axis=1), atol=1e-3)
    assert max(calls) <= 16
    assert min(calls) < 16


def test_a_draft_that_is_always_right_saves_all_calls_but_one_a_window(small, windows):
    model = make(small, image_tokens=16, image_codes=1)
    prompts = prompts_of(model, Guidance())
    key = jax.random.key(0)[None]
    codes, calls = draw_codes_in_windows(model, prompts, key, Sampling(), Guidance(), 16)
    assert not np.any(codes)
    assert calls == 1 + 4  # the prompt's, and 15 codes in fours


@pytest.mark.parametrize("scale", [None, 2.0])
def test_the_joint_distribution_is_that_of_plain_sampling(small, scale):
    model = make(small, image_codes=3)
    guidance = Guidance(scale)
    prompts, draws = prompts_of(model, guidance), 4096
    keys = jax.random.split(jax.random.key(1), (draws, 1))
    sampling = Sampling(1.5, top_k=2)
    draw = lambda key: draw_codes_in_windows(model, prompts, key, sampling, guidance, 4)  # noqa: E731
    codes = np.asarray(jax.vmap(draw)(keys)[0][:, 0])

    every = np.array(list(product(range(3), repeat=4)))
    both = [read_in_one_go(model, prompt, every) for prompt in PROMPTS]
    logits = both[0] if scale is None else both[1] + scale * (both[0] - both[1])
    odds = np.exp(logits.astype(float) / 1.5)
    shares = np.where(logits >= np.sort(logits)[..., 1:2], odds, 0)
    shares /= shares.sum(-1, keepdims=True)
    exact = np.take_along_axis(shares, every[..., None], axis=2)[..., 0].prod(axis=1)
    found = np.bincount(codes @ (27, 9, 3, 1), minlength=81)
    assert found[exact == 0].sum() == 0
    known = exact > 0
    assert known.sum() == 16
    assert (exact[known] * draws).min() > 3
    assert chisquare(found[known], exact[known] * draws).pvalue > 0.01
