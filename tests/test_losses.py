"""The chunked cross-entropy equals a plain one, by parts and by gradient; the contrastive loss."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding

from cm3leon_jax import config
from cm3leon_jax.models.losses import contrastive, cross_entropy
from cm3leon_jax.sharding import STORE, batch_sharding, make_mesh, spec

B, T, D, V, IMAGE_START = 3, 10, 8, 21, 13


@pytest.fixture
def arrays():
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = jax.random.normal(keys[0], (B, T, D))
    table = jax.random.normal(keys[1], (V, D))
    targets = jax.random.randint(keys[2], (B, T), 0, V)
    weights = jax.random.uniform(keys[3], (B, T)) * (jnp.arange(T) < 8)
    return hidden, table, targets, weights


def plain(hidden, table, targets, weights):
    logits = hidden @ table.T
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return weights * losses, weights * jax.nn.logsumexp(logits, axis=-1) ** 2


@pytest.mark.parametrize("chunk", [1, 3, 5, 10, 64])
def test_chunked_loss_equals_plain_loss(arrays, chunk):
    losses, z_losses = plain(*arrays)
    _, _, targets, weights = arrays
    image = targets >= IMAGE_START
    sums = jax.jit(cross_entropy, static_argnums=(4, 5))(*arrays, IMAGE_START, chunk)
    expected = {
        "total": losses.sum(),
        "weight": weights.sum(),
        "text_total": losses[~image].sum(),
        "text_weight": weights[~image].sum(),
        "image_total": losses[image].sum(),
        "image_weight": weights[image].sum(),
        "z_total": z_losses.sum(),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(sums, name), value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("chunk", [3, 10])
def test_chunked_gradients_equal_plain_gradients(arrays, chunk):
    _, _, targets, weights = arrays

    def chunked(hidden, table):
        sums = cross_entropy(hidden, table, targets, weights, IMAGE_START, chunk)
        return sums.total + 0.1 * sums.z_total

    def whole(hidden, table):
        losses, z_losses = plain(hidden, table, targets, weights)
        return losses.sum() + 0.1 * z_losses.sum()

    ours = jax.jit(jax.grad(chunked, argnums=(0, 1)))(*arrays[:2])
    theirs = jax.jit(jax.grad(whole, argnums=(0, 1)))(*arrays[:2])
    for a, b in zip(ours, theirs):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_no_weight_gives_zero_and_not_nan(arrays):
    hidden, table, targets, weights = arrays
    sums = cross_entropy(hidden, table, targets, jnp.zeros_like(weights), IMAGE_START, 4)
    assert all(float(value) == 0 for value in sums.means().values())


@pytest.fixture(scope="module")
def on_mesh():
    """Rows, tables and the loss' gradient, on 2 x 2 x 2 devices: compiled, and its arguments."""
    mesh = make_mesh(config.Mesh(2, 2, 2))
    rows, vocab = batch_sharding(mesh), NamedSharding(mesh, spec(("vocab", "embed"), STORE))
    keys = jax.random.split(jax.random.key(0), 4)
    arrays = (
        jax.device_put(jax.random.normal(keys[0], (8, 30, 24)), rows),
        jax.device_put(jax.random.normal(keys[1], (1000, 24)), vocab),
        jax.device_put(jax.random.randint(keys[2], (8, 30), 0, 1000), rows),
        jax.device_put(jax.random.uniform(keys[3], (8, 30)), rows),
    )

    def loss(hidden, table, targets, weights):
        sums = cross_entropy(hidden, table, targets, weights, 700, 7)
        return sums.total + 0.1 * sums.z_total + sums.image_total

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    with jax.set_mesh(mesh):
        return run, arrays, run.lower(*arrays).compile()


@pytest.mark.optimized
def test_the_loss_of_a_mesh_is_that_of_one_device(on_mesh):
    run, arrays, compiled = on_mesh
    loss, gradients = compiled(*arrays)
    expected, wanted = run(*map(np.asarray, arrays))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for a, b in zip(gradients, wanted):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.optimized
def test_no_device_holds_logits_of_the_whole_vocabulary(on_mesh):
    text = on_mesh[2].as_text()
    assert re.search(r"\[2,7,500\]", text)  # of a chunk, its rows and its half of the vocabulary
    assert not re.search(r"\[[\d,]*\b1000\b[\d,]*\]", text)  # nor of the table


@pytest.mark.optimized
def test_the_table_is_gathered_and_its_gradient_reduced_once(on_mesh):
    text = on_mesh[2].as_text()
    moved = [line for line in text.splitlines() if re.search(r"all-(gather|reduce)\(", line)]
    tables = [line for line in moved if "[500,24]" in line]
    kinds = [re.search(r"all-(gather|reduce)\(", line)[1] for line in tables]
    assert sorted(kinds) == ["gather", "reduce"]
    # In the program itself, not in the loops over chunks before it.
    assert all(text.index("ENTRY") < text.index(line) for line in tables)


@pytest.fixture
def pairs():
    """Unit vectors of 16 pictures and of their texts, and a scale."""
    vectors = jax.random.normal(jax.random.key(0), (2, 16, D))
    vectors = vectors.at[1].add(vectors[0])
    return *(vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)), jnp.float32(7.0)


def both_ways(images, texts, scale):
    logits = scale * images @ texts.T
    own = jnp.arange(len(images))
    ways = (logits, logits.T)
    losses = [optax.softmax_cross_entropy_with_integer_labels(way, own).mean() for way in ways]
    return (losses[0] + losses[1]) / 2


def test_the_contrastive_loss_is_cross_entropy_in_both_directions(pairs):
    loss, metrics = contrastive(*pairs)
    np.testing.assert_allclose(loss, both_ways(*pairs), rtol=1e-6)
    scores = np.asarray(pairs[0] @ pairs[1].T)
    found = [(way.argmax(axis=1) == np.arange(16)).mean() for way in (scores, scores.T)]
    assert found[0] != found[1]
    np.testing.assert_allclose(metrics["accuracy"], np.mean(found), rtol=1e-6)
    ours = jax.jit(jax.grad(lambda *a: contrastive(*a)[0], argnums=(0, 1, 2)))(*pairs)
    theirs = jax.jit(jax.grad(both_ways, argnums=(0, 1, 2)))(*pairs)
    for a, b in zip(ours, theirs):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_the_contrastive_loss_compares_with_the_pairs_of_all_devices(pairs, sizes):
    images, texts, scale = pairs
    mesh = make_mesh(config.Mesh(*sizes))
    split = [jax.device_put(x, batch_sharding(mesh)) for x in (images, texts)]
    run = jax.jit(jax.value_and_grad(lambda *a: contrastive(*a)[0], argnums=(0, 1, 2)))
    with jax.set_mesh(mesh):
        loss, gradients = run(*split, scale)
    expected, wanted = run(images, texts, scale)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    for a, b in zip(gradients, wanted):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
