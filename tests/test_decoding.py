"""Decoding through the cache equals the model read in one go; combinators equal NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CHAMELEON
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3leon_jax import config
from cm3leon_jax.decoding.engine import draw_codes, draw_text, pad_prompts
from cm3leon_jax.decoding.logits import Sampling, draw, guide, keep_top_k, keep_top_p
from cm3leon_jax.models.transformer import Transformer, code_index
from cm3leon_jax.tokens.vocabulary import BREAK, EOS, EOSS, PAD

FORMS = {
    "cm3leon": {},
    "codes": {"model.code_positions": True, "model.code_features": 8},
    "chameleon": CHAMELEON,
}
GREEDY = Sampling(temperature=jnp.float32(0))


@pytest.fixture(params=FORMS, ids=list(FORMS))
def model(request: pytest.FixtureRequest, small: config.Experiment) -> Transformer:
    c = config.replace(small, FORMS[request.param]).model
    codebook = jax.random.normal(jax.random.key(3), (c.image_codes, 8)) if c.code_features else None
    return Transformer(c, rngs=nnx.Rngs(0), codebook=codebook)


def prompts_of(c: config.Model, lengths=(3, 7, 5)) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    words = lambda n: rng.integers(c.specials, c.specials + c.text_pieces, n)  # noqa: E731
    return [np.array([EOS, *words(n), BREAK]) for n in lengths]


def read_in_one_go(model: Transformer, ids: np.ndarray) -> np.ndarray:
    """Logits after every id, without cache or padding."""
    tokens = jnp.asarray(ids)[None]
    places = code_index(tokens, model.image_start)  # right where no image has a hole
    hidden = model(tokens, jnp.ones_like(tokens), jnp.arange(len(ids))[None], places)
    return np.asarray(hidden[0] @ model.head_table().T)


def keys_of(rows: int, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), rows)


def test_cached_image_decode_equals_teacher_forcing(model):
    c, prompts = model.config, prompts_of(model.config)
    codes = draw_codes(model, pad_prompts([prompts]), keys_of(3), GREEDY, None, c.image_tokens)
    assert codes.shape == (3, c.image_tokens)
    for prompt, row in zip(prompts, np.asarray(codes)):
        ids = np.concatenate([prompt, row + model.image_start])
        logits = read_in_one_go(model, ids)[len(prompt) - 1 : -1, model.image_start :]
        chosen = np.take_along_axis(logits, row[:, None], axis=1)[:, 0]
        np.testing.assert_allclose(chosen, logits.max(axis=1), atol=1e-4)


def test_cached_hidden_states_equal_teacher_forcing(model):
    prompts = prompts_of(model.config)
    padded = pad_prompts([prompts])
    length = padded.tokens.shape[1]
    cache = model.empty_cache(3, length)
    table, hidden = model.embedding_table(), None
    for at in range(0, length, 4):  # four tokens at a time
        tokens = jnp.asarray(padded.tokens[:, at : at + 4])
        none = jnp.full(tokens.shape, -1)
        hidden, cache = model.extend(tokens, none, padded.start, jnp.int32(at), cache, table)
    for row, prompt in enumerate(prompts):
        tokens = jnp.asarray(prompt)[None]
        ones = jnp.ones_like(tokens)
        whole = model(tokens, ones, jnp.arange(len(prompt))[None], -ones)
        np.testing.assert_allclose(hidden[row, -1], whole[0, -1], atol=1e-4)


def test_cached_text_decode_equals_teacher_forcing(model):
    c = model.config
    prompts = [np.append(p, c.specials - 1) for p in prompts_of(c)]  # any last id will do
    drawn = np.asarray(
        draw_text(model, pad_prompts([prompts]), keys_of(3), GREEDY, 8, c.text_pieces)
    )
    legal = np.r_[EOSS, c.specials : model.image_start]
    for prompt, row in zip(prompts, drawn):
        ids = row[row != PAD]
        assert len(ids) >= 1
        assert np.all((ids >= c.specials) & (ids < model.image_start))
        closed = np.append(ids, EOSS) if len(ids) < 8 else ids
        logits = read_in_one_go(model, np.concatenate([prompt, closed]))[len(prompt) - 1 : -1]
        for step, (chosen, scores) in enumerate(zip(closed, logits)):
            best = scores[legal[1:] if step == 0 else legal].max()
            assert scores[chosen] == pytest.approx(best, abs=1e-4)


def test_guidance_1_is_conditional_and_0_unconditional(model):
    c, prompts = model.config, prompts_of(model.config)
    blank = [np.array([EOS, 5, BREAK])] * 3
    draw_with = lambda streams, scale: np.asarray(  # noqa: E731
        draw_codes(model, pad_prompts(streams), keys_of(3), Sampling(), scale, c.image_tokens)
    )
    conditional = draw_with([prompts], None)
    np.testing.assert_array_equal(draw_with([prompts, blank], 1.0), conditional)
    np.testing.assert_array_equal(draw_with([blank, prompts], 0.0), conditional)
    assert np.any(draw_with([prompts, blank], 4.0) != conditional)


def test_a_batch_equals_its_rows_alone(model):
    c, prompts = model.config, prompts_of(model.config)
    sampling = Sampling(jnp.float32(1.0), jnp.float32(0.9))
    together = draw_codes(model, pad_prompts([prompts]), keys_of(3), sampling, None, c.image_tokens)
    for row in range(3):
        one = pad_prompts([prompts[row : row + 1]])
        alone = draw_codes(model, one, keys_of(3)[row : row + 1], sampling, None, c.image_tokens)
        np.testing.assert_array_equal(alone[0], together[row])


def test_new_numbers_compile_nothing(model):
    c, prompts = model.config, pad_prompts([prompts_of(model.config)] * 2)
    for scale in (1.5, 3.0):
        for temperature in (0.5, 1.0):
            sampling = Sampling(jnp.float32(temperature), jnp.float32(0.9))
            draw_codes(model, prompts, keys_of(3), sampling, jnp.float32(scale), c.image_tokens)
            if (scale, temperature) == (1.5, 0.5):
                size = draw_codes._cache_size()
    assert draw_codes._cache_size() == size


# Without subnormal numbers: XLA takes them for 0 on CPU, so that two of them are a tie.
numbers = st.floats(-8, 8, width=32, allow_subnormal=False)
logits = st.lists(numbers, min_size=2, max_size=12, unique=True)


@given(logits, st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_top_k_keeps_the_k_largest(values, k):
    kept = np.asarray(keep_top_k(jnp.array([values]), k))[0] > -1e29
    assert set(np.flatnonzero(kept)) == set(np.argsort(values)[::-1][:k])


@given(logits, st.floats(0.05, 1.0))
@settings(max_examples=60, deadline=None)
def test_top_p_keeps_the_smallest_set_that_reaches_p(values, p):
    kept = np.asarray(keep_top_p(jnp.array([values]), p))[0] > -1e29
    probabilities = np.exp(np.array(values) - max(values))
    probabilities /= probabilities.sum()
    order = np.argsort(values)[::-1]
    assert set(np.flatnonzero(kept)) == set(order[: kept.sum()])
    assert probabilities[kept].sum() >= p - 1e-4
    assert probabilities[order[: kept.sum() - 1]].sum() < p + 1e-4


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


def test_guide_is_the_equation_of_the_paper():
    conditional, unconditional = np.array([[1.0, 2.0]]), np.array([[0.5, 3.0]])
    expected = unconditional + 2.5 * (conditional - unconditional)
    np.testing.assert_allclose(guide(conditional, unconditional, 2.5), expected)
