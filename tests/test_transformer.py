"""The decoder's forms: causal, packed, initialised and shaped as the paper says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CHAMELEON
from flax import nnx

from cm3leon_jax import config
from cm3leon_jax.models.attention import attend
from cm3leon_jax.models.transformer import Transformer, rotate

FORMS = {
    "cm3leon": {},
    "relu": {"model.activation": "relu"},
    "codes": {"model.code_positions": True, "model.code_features": 8},
    "chameleon_7b": CHAMELEON,
    "chameleon_30b": CHAMELEON | {"model.norm_placement": "after"},
}


def build(c: config.Experiment, seed: int = 0) -> Transformer:
    codebook = None
    if c.model.code_features:
        codebook = jax.random.normal(
            jax.random.key(9), (c.model.image_codes, c.model.code_features)
        )
    return Transformer(c.model, rngs=nnx.Rngs(seed), codebook=codebook)


@jax.jit
def read(model: Transformer, *rows: jax.Array) -> jax.Array:
    return model(*rows)


def rows(c: config.Experiment, batch: int = 2, length: int = 20) -> tuple[jax.Array, ...]:
    tokens = jax.random.randint(jax.random.key(1), (batch, length), 5, c.model.vocabulary)
    is_code = tokens >= c.model.specials + c.model.text_pieces
    codes_at = jnp.where(is_code, jnp.arange(length) % 4, -1)
    positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
    return tokens, jnp.ones_like(tokens), positions, codes_at


@pytest.fixture(params=FORMS, ids=list(FORMS))
def form(request: pytest.FixtureRequest, small: config.Experiment) -> config.Experiment:
    return config.replace(small, FORMS[request.param])


def test_later_tokens_do_not_reach_earlier_positions(form):
    model, (tokens, *others) = build(form), rows(form)
    changed = tokens.at[:, 12].set((tokens[:, 12] + 1) % form.model.vocabulary)
    before, after = read(model, tokens, *others), read(model, changed, *others)
    np.testing.assert_array_equal(before[:, :12], after[:, :12])
    assert np.abs(before[:, 12:] - after[:, 12:]).max() > 1e-3


def test_packed_documents_do_not_see_one_another(form):
    model, (tokens, _, _, codes_at) = build(form), rows(form, batch=1)
    lengths = (7, 13)
    segments = jnp.repeat(jnp.array([1, 2]), jnp.array(lengths))[None]
    positions = jnp.concatenate([jnp.arange(n) for n in lengths])[None]
    packed = read(model, tokens, segments, positions, codes_at)
    for start, length in ((0, 7), (7, 13)):
        part = slice(start, start + length)
        ones = jnp.ones((1, length), int)
        at = jnp.arange(length)[None]
        alone = read(model, tokens[:, part], ones, at, codes_at[:, part])
        np.testing.assert_allclose(packed[:, part], alone, atol=2e-5)


def test_parameter_count_is_that_of_the_config(form):
    model = build(form)
    counted = sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert counted == form.model.parameters


def test_remat_changes_no_gradient(form):
    batch = rows(form)
    loss = lambda model: jnp.square(model(*batch)).sum()  # noqa: E731
    plain = jax.jit(jax.grad(loss))(build(form))
    again = jax.jit(jax.grad(loss))(build(config.replace(form, {"model.remat": "full"})))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_paper_initialisation(small):
    paper = config.replace(
        small,
        {"model.init_residual": "zero", "model.init_std": 0.006, "model.position_std": 0.0002},
    )
    model = build(paper)
    assert not np.any(model.layers.out[...])
    assert not np.any(model.layers.down[...])
    for array, std in (
        (model.embedding[...], 0.006),
        (model.layers.query[...], 0.006),
        (model.layers.up[...], 0.006),
        (model.positions[...], 0.0002),
    ):
        assert np.abs(array).max() <= 3 * std
        # A normal cut at 3 sigma keeps 98.66 % of its standard deviation.
        assert np.std(array) == pytest.approx(0.9866 * std, rel=0.05)
    biases = [path for path, _ in jax.tree_util.tree_leaves_with_path(model) if "bias" in str(path)]
    assert not biases


def test_rotary_positions_are_relative(small):
    form = config.replace(small, CHAMELEON)
    model, (tokens, segments, positions, codes_at) = build(form), rows(form)
    hidden = read(model, tokens, segments, positions, codes_at)
    moved = read(model, tokens, segments, positions + 17, codes_at)
    np.testing.assert_allclose(hidden, moved, atol=1e-4)
    x = jax.random.normal(jax.random.key(0), (1, 5, 2, 8))
    norms = jnp.linalg.norm(rotate(x, jnp.arange(5)[None], 1e4), axis=-1)
    np.testing.assert_allclose(norms, jnp.linalg.norm(x, axis=-1), rtol=1e-5)


def test_attention_equals_a_plain_numpy_one():
    rng = np.random.default_rng(0)
    query = rng.normal(size=(2, 6, 4, 8)).astype(np.float32)
    key, value = rng.normal(size=(2, 2, 6, 2, 8)).astype(np.float32)
    segments = np.array([[1, 1, 1, 2, 2, 0], [1, 2, 2, 2, 3, 3]])
    context = attend(*map(jnp.asarray, (query, key, value, segments)))
    for b, t, n in np.ndindex(2, 6, 4):
        seen = [s for s in range(t + 1) if segments[b, s] == segments[b, t]]
        scores = np.array([query[b, t, n] @ key[b, s, n // 2] for s in seen]) / np.sqrt(8)
        weights = np.exp(scores - scores.max())
        expected = (weights / weights.sum()) @ value[b, seen, n // 2]
        np.testing.assert_allclose(context[b, t, n], expected, atol=1e-5)


def test_a_code_is_told_its_place_in_its_image_and_other_tokens_are_not(small):
    form = config.replace(small, FORMS["codes"])
    model, (tokens, segments, positions, codes_at) = build(form), rows(form)
    at = int(jnp.argmax(codes_at[0] == 1))
    hidden = read(model, tokens, segments, positions, codes_at)
    moved = read(model, tokens, segments, positions, codes_at.at[0, at].set(2))
    np.testing.assert_array_equal(hidden[0, :at], moved[0, :at])
    np.testing.assert_array_equal(hidden[1], moved[1])
    assert np.abs(hidden[0, at] - moved[0, at]).max() > 0.01
    # Only what is told place 0 takes the first vector: no text does.
    table = model.code_positions[...]
    model.code_positions[...] = table.at[0].set(-table[0])
    changed = jnp.any(read(model, tokens, segments, positions, codes_at) != hidden, axis=-1)
    for row in range(2):
        first = int(jnp.argmax(codes_at[row] == 0))
        assert codes_at[row, first] == 0
        assert not changed[row, :first].any()
        assert changed[row, first]


def test_codes_that_look_alike_start_alike(small):
    form = config.replace(small, {"model.code_features": 8})
    codebook = jax.random.normal(jax.random.key(0), (64, 8)).at[5].set(0.0).at[6].set(0.0)
    model = Transformer(form.model, rngs=nnx.Rngs(0), codebook=codebook)
    table, own = model.embedding_table(), model.embedding[...]
    start = model.image_start
    np.testing.assert_allclose(table[start + 5], own[start + 5])
    expected = own[start + 7] + codebook[7] @ model.code_projection[...]
    np.testing.assert_allclose(table[start + 7], expected, rtol=1e-5)
    with pytest.raises(ValueError, match="code_features"):
        Transformer(form.model, rngs=nnx.Rngs(0), codebook=codebook[:, :3])
