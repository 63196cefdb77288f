"""The chunked cross-entropy equals a plain one, by parts and by gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cm3leon_jax.models.losses import cross_entropy

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
    sums = cross_entropy(*arrays, IMAGE_START, chunk)
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

    ours = jax.grad(chunked, argnums=(0, 1))(*arrays[:2])
    theirs = jax.grad(whole, argnums=(0, 1))(*arrays[:2])
    for a, b in zip(ours, theirs):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_no_weight_gives_zero_and_not_nan(arrays):
    hidden, table, targets, weights = arrays
    sums = cross_entropy(hidden, table, targets, jnp.zeros_like(weights), IMAGE_START, 4)
    assert all(float(value) == 0 for value in sums.means().values())
