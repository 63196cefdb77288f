"""Decoding through the cache equals the model read in one go, and a batch its rows alone."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CHAMELEON, SMALL
from flax import nnx

from cm3leon_jax import config
from cm3leon_jax.decoding.engine import count_codes, draw_codes, draw_text, pad_prompts
from cm3leon_jax.decoding.logits import Guidance, Sampling
from cm3leon_jax.models import transformer
from cm3leon_jax.models.cache import empty_cache
from cm3leon_jax.models.transformer import Transformer
from cm3leon_jax.sharding import make_mesh, shardings
from cm3leon_jax.tokens.vocabulary import BREAK, EOS, EOSS, PAD

FORMS = {
    "cm3leon": {},
    "codes": {"model.code_positions": True, "model.code_features": 8},
    "chameleon": CHAMELEON,
}
GREEDY, DRAWN = Sampling(jnp.float32(0)), Sampling(jnp.float32(1), jnp.float32(0.9))
ROW = 32  # as long as any prompt and its answer, so that all are read by one program


@cache
def build(form: str) -> Transformer:
    c = config.replace(config.Experiment(), SMALL | FORMS[form]).model
    codebook = jax.random.normal(jax.random.key(3), (c.image_codes, 8)) if c.code_features else None
    return jax.jit(lambda: Transformer(c, rngs=nnx.Rngs(0), codebook=codebook))()


@pytest.fixture(params=FORMS, ids=list(FORMS))
def model(request: pytest.FixtureRequest) -> Transformer:
    return build(request.param)


def prompts_of(c: config.Model, lengths=(3, 7, 5)) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    words = lambda n: rng.integers(c.specials, c.specials + c.text_pieces, n)  # noqa: E731
    return [np.array([EOS, *words(n), BREAK]) for n in lengths]


@jax.jit
def read_row(model: Transformer, tokens, segments, places) -> tuple[jax.Array, jax.Array]:
    hidden = model(tokens, segments, jnp.arange(tokens.shape[1])[None], places)[0]
    return hidden, hidden @ model.head_table().T


def read_in_one_go(model: Transformer, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hidden states and logits after every id, without a cache."""
    row = np.zeros((3, 1, ROW), np.int32)  # what stands behind a token does not reach it
    places = count_codes(ids, model.image_start)  # right where no image has a hole
    row[:, 0, : len(ids)] = ids, np.ones_like(ids), places
    hidden, logits = read_row(model, *row)
    return np.asarray(hidden[: len(ids)]), np.asarray(logits[: len(ids)])


def check_most_likely(model: Transformer, prompts: list[np.ndarray], codes: jax.Array) -> None:
    for prompt, row in zip(prompts, np.asarray(codes)):
        ids = np.concatenate([prompt, row + model.image_start])
        logits = read_in_one_go(model, ids)[1][len(prompt) - 1 : -1, model.image_start :]
        chosen = np.take_along_axis(logits, row[:, None], axis=1)[:, 0]
        np.testing.assert_allclose(chosen, logits.max(axis=1), atol=1e-4)


def test_codes_are_counted_within_unbroken_runs():
    for ids, expected in (
        ([1, 9, 9, 9, 3, 9, 9], [-1, 0, 1, 2, -1, 0, 1]),
        ([9, 9, 2, 2, 9, 2, 9], [0, 1, -1, -1, 0, -1, 0]),
    ):
        np.testing.assert_array_equal(count_codes(np.array(ids), 9), expected)


def keys_of(rows: int, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), rows)


def test_cached_image_decode_equals_teacher_forcing(model):
    c, prompts = model.config, prompts_of(model.config)
    codes = draw_codes(
        model,
        pad_prompts([prompts], model.image_start),
        keys_of(3),
        GREEDY,
        Guidance(),
        c.image_tokens,
    )
    assert codes.shape == (3, c.image_tokens)
    check_most_likely(model, prompts, codes)


def test_layers_apart_decode_as_teacher_forcing(model, monkeypatch):
    assert model.for_decoding().is_stacked  # as all small ones are
    monkeypatch.setattr(transformer, "APART", 0)
    c, prompts = model.config, prompts_of(model.config)
    apart, padded = model.for_decoding(), pad_prompts([prompts], model.image_start)
    assert model.is_stacked
    assert not apart.is_stacked
    codes = draw_codes(apart, padded, keys_of(3), GREEDY, Guidance(), c.image_tokens)
    check_most_likely(model, prompts, codes)


def test_cached_hidden_states_equal_teacher_forcing(model):
    prompts = prompts_of(model.config)
    padded = pad_prompts([prompts], model.image_start)
    length = padded.tokens.shape[1]
    cache = empty_cache(model.config, 3, length)
    table, hidden = model.embedding_table(), None
    for at in range(0, length, 4):  # four tokens at a time
        tokens = jnp.asarray(padded.tokens[:, at : at + 4])
        none = jnp.full(tokens.shape, -1)
        hidden, cache = model.extend(
            tokens, none, padded.start, jnp.int32(at), cache, table, length
        )
    for row, prompt in enumerate(prompts):
        whole, _ = read_in_one_go(model, prompt)
        np.testing.assert_allclose(hidden[row, -1], whole[-1], atol=1e-4)


def test_cached_text_decode_equals_teacher_forcing(model):
    c = model.config
    prompts = [np.append(p, c.specials - 1) for p in prompts_of(c)]  # any last id will do
    drawn = np.asarray(
        draw_text(
            model,
            pad_prompts([prompts], model.image_start),
            keys_of(3),
            GREEDY,
            Guidance(),
            8,
            c.text_pieces,
        )
    )
    legal = np.r_[EOSS, c.specials : model.image_start]
    for prompt, row in zip(prompts, drawn):
        ids = row[row != PAD]
        assert len(ids) >= 1
        assert np.all((ids >= c.specials) & (ids < model.image_start))
        closed = np.append(ids, EOSS) if len(ids) < 8 else ids
        _, logits = read_in_one_go(model, np.concatenate([prompt, closed]))
        logits = logits[len(prompt) - 1 : -1]
        for step, (chosen, scores) in enumerate(zip(closed, logits)):
            best = scores[legal[1:] if step == 0 else legal].max()
            assert scores[chosen] == pytest.approx(best, abs=1e-4)


def test_new_numbers_compile_nothing(model):
    c = model.config
    prompts = pad_prompts([prompts_of(c)] * 2, model.image_start)
    for scale in (1.5, 3.0):
        for temperature in (0.5, 1.0):
            sampling = Sampling(jnp.float32(temperature), jnp.float32(0.9))
            guidance = Guidance(jnp.float32(scale))
            draw_codes(model, prompts, keys_of(3), sampling, guidance, c.image_tokens)
            if (scale, temperature) == (1.5, 0.5):
                size = draw_codes._cache_size()
    assert draw_codes._cache_size() == size


def test_an_int8_cache_keeps_hidden_states_within_a_percent(model):
    padded = pad_prompts([prompts_of(model.config)], model.image_start)
    table, length = model.embedding_table(), padded.tokens.shape[1]

    def read(int8: bool) -> np.ndarray:
        cache = empty_cache(model.config, 3, length + 1, int8)
        tokens, codes_at, start = map(jnp.asarray, padded)
        _, cache = model.read_prompts(tokens, codes_at, start, cache, table)
        new, none = jnp.full((3, 1), model.image_start), jnp.zeros((3, 1), int)
        hidden, cache = model.extend(new, none, start, length, cache, table, length + 1)
        assert cache.keys.dtype == (jnp.int8 if int8 else jnp.float32)
        return np.asarray(hidden[:, 0])

    exact, rounded = read(False), read(True)
    apart = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
    assert 0 < apart < 0.01


def test_places_in_an_image_count_from_the_first_code_drawn(model):
    c, prompts = model.config, prompts_of(model.config)
    padded = pad_prompts([prompts], model.image_start)
    draw = lambda first: np.asarray(  # noqa: E731
        draw_codes(model, padded, keys_of(3), GREEDY, Guidance(), 2, first)
    )
    assert np.any(draw(0) != draw(2)) == c.code_positions


def test_decode_over_a_tensor_mesh_equals_teacher_forcing(model):
    c, prompts = model.config, prompts_of(model.config)
    mesh = make_mesh(config.Mesh(data=1, fsdp=1, tensor=2), jax.devices())
    split = jax.device_put(model, shardings(model, mesh))
    assert split.layers.query[...].sharding.shard_shape(split.layers.query[...].shape)[2] == 2
    padded = pad_prompts([prompts], model.image_start)
    codes = draw_codes(split, padded, keys_of(3), GREEDY, Guidance(), c.image_tokens)
    check_most_likely(model, prompts, codes)


def test_int8_weights_keep_logits_within_two_percent(model):
    c, prompt = model.config, prompts_of(model.config)[1]
    rounded = model.for_decoding(int8=True)
    weights = jax.tree.leaves(rounded.layers)
    count = 7 if c.activation == "swiglu" else 6
    assert sum(x.dtype == jnp.int8 for x in weights) == count
    exact, near = (read_in_one_go(each, prompt)[1] for each in (model, rounded))
    apart = np.linalg.norm(near - exact) / np.linalg.norm(exact)
    assert 0 < apart < 0.02
    padded = pad_prompts([[prompt]], model.image_start)
    codes = draw_codes(rounded, padded, keys_of(1), Sampling(), Guidance(), 4, int8=True)
    assert np.all((np.asarray(codes) >= 0) & (np.asarray(codes) < c.image_codes))


@pytest.mark.optimized
def test_guidance_1_is_conditional_and_0_unconditional(model):
    c, prompts = model.config, prompts_of(model.config)
    blank = [np.array([EOS, 5, BREAK])] * 3
    draw_with = lambda streams, scale: np.asarray(  # noqa: E731
        draw_codes(
            model,
            pad_prompts(streams, model.image_start),
            keys_of(3),
            DRAWN,
            Guidance(scale),
            c.image_tokens,
        )
    )
    conditional = draw_with([prompts], None)
    np.testing.assert_array_equal(draw_with([prompts, blank], 1.0), conditional)
    np.testing.assert_array_equal(draw_with([blank, prompts], 0.0), conditional)
    assert np.any(draw_with([prompts, blank], 4.0) != conditional)


@pytest.mark.optimized
def test_a_batch_equals_its_rows_alone(model):
    c, prompts = model.config, prompts_of(model.config)
    draw = lambda prompts, keys: draw_codes(  # noqa: E731
        model,
        pad_prompts([prompts], model.image_start),
        keys,
        DRAWN,
        Guidance(),
        c.image_tokens,
    )
    together = draw(prompts, keys_of(3))
    for row in range(3):
        alone = draw(prompts[row : row + 1], keys_of(3)[row : row + 1])
        np.testing.assert_array_equal(alone[0], together[row])


@pytest.mark.optimized
def test_samples_of_one_prompt_equal_those_of_the_prompt_repeated(model):
    c, prompts = model.config, prompts_of(model.config)[:2]
    blank = [np.array([EOS, 5, BREAK])] * 2
    keys, guidance = keys_of(6), Guidance(2.0)

    def draw(streams):
        padded = pad_prompts(streams, model.image_start)
        return np.asarray(draw_codes(model, padded, keys, Sampling(), guidance, c.image_tokens))

    shared = draw([prompts, blank])
    repeat = lambda rows: [row for row in rows for _ in range(3)]  # noqa: E731
    np.testing.assert_array_equal(shared, draw([repeat(prompts), repeat(blank)]))
    assert len(np.unique(shared, axis=0)) > 2


@pytest.mark.optimized
def test_segments_of_the_cache_change_nothing(model, monkeypatch):
    c, padded = model.config, pad_prompts([prompts_of(model.config)], model.image_start)
    draw = lambda: np.asarray(  # noqa: E731
        draw_codes(model, padded, keys_of(3), DRAWN, Guidance(), c.image_tokens)
    )
    whole = draw()
    monkeypatch.setattr("cm3leon_jax.decoding.engine.SEGMENT", 1)
    draw_codes.clear_cache()
    np.testing.assert_array_equal(draw(), whole)
    draw_codes.clear_cache()
