"""Muon against the whole optimizer of the library, and what it makes of a layer's matrices."""

from dataclasses import replace

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from cm3leon_jax import config
from cm3leon_jax.checkpoint import names_of
from cm3leon_jax.models.transformer import Transformer
from cm3leon_jax.sharding import make_mesh, shardings
from cm3leon_jax.training.optimizer import MUON_RMS, make_optimizer

MUON = config.Optimizer(
    learning_rate=0.1,
    warmup_steps=0,
    schedule="constant",
    weight_decay=0.3,
    clip=0,
    matrices="muon",
)
SHAPE = config.Model(
    layers=2, width=32, heads=4, mlp=64, context=16, specials=16, sentinels=4, text_pieces=32,
    image_codes=32, image_tokens=4, dtype="float32", remat="none", loss_chunk=16,
)  # fmt: skip
AXES = {"query": ((1,), (2, 3)), "out": ((1, 2), (3,)), "up": ((1,), (2,))}


def draw() -> tuple[Transformer, Transformer]:
    """A model and gradients like it."""
    model = Transformer(SHAPE, rngs=nnx.Rngs(0))
    keys = iter(jax.random.split(jax.random.key(1), 99))
    return model, jax.tree.map(lambda x: jax.random.normal(next(keys), x.shape), model)


def take_steps(optimizer: optax.GradientTransformation, params, gradients):
    @jax.jit
    def twice(params, gradients):
        state = optimizer.init(params)
        for _ in range(2):
            updates, state = optimizer.update(gradients, state, params)
            params = optax.apply_updates(params, updates)
        return params, updates

    return twice(params, gradients)


def matrices(model) -> dict[str, jax.Array]:
    return {name: getattr(model.layers, name)[...] for name in AXES}


def test_muon_moves_matrices_as_the_librarys_optimizer_does():
    model, gradients = draw()
    ours = matrices(take_steps(make_optimizer(MUON, 10), model, gradients)[0])
    rules = {name: optax.contrib.MuonDimensionNumbers(*axes) for name, axes in AXES.items()}
    theirs = optax.contrib.muon(
        0.1, weight_decay=0.3, consistent_rms=MUON_RMS, muon_weight_dimension_numbers=rules
    )
    wanted, _ = take_steps(theirs, matrices(model), matrices(gradients))
    for name in AXES:
        np.testing.assert_allclose(ours[name], wanted[name], atol=1e-6, err_msg=name)


def test_what_is_no_matrix_of_a_layer_is_left_to_adam():
    model, gradients = draw()
    muon, _ = take_steps(make_optimizer(MUON, 10), model, gradients)
    adam, _ = take_steps(make_optimizer(replace(MUON, matrices="adam"), 10), model, gradients)
    same = jax.tree_util.tree_map(lambda a, b: bool((a == b).all()), muon, adam)
    names = {
        names_of(path)[1]
        for path, is_same in jax.tree_util.tree_leaves_with_path(same)
        if not is_same
    }
    assert names == {"query", "key", "value", "out", "up", "down"}


def test_a_muon_step_is_orthogonal_and_of_adams_size():
    model, gradients = draw()
    free = replace(MUON, weight_decay=0.0, learning_rate=1.0)
    _, updates = take_steps(make_optimizer(free, 10), model, gradients)
    for name, (summed, _) in AXES.items():
        update = np.asarray(matrices(updates)[name])
        for layer in update:
            matrix = layer.reshape(np.prod(layer.shape[: len(summed)]), -1)
            values = np.linalg.svd(matrix, compute_uv=False) / (MUON_RMS * max(matrix.shape) ** 0.5)
            assert values.min() > 0.3, name
            assert values.max() < 1.3, name
        np.testing.assert_allclose(np.sqrt(np.square(update).mean()), MUON_RMS, rtol=0.2)


@pytest.mark.parametrize("sizes", [(1, 8, 1), (2, 2, 2)])
def test_sharded_muon_equals_one_device(sizes):
    model, gradients = draw()
    wanted, _ = take_steps(make_optimizer(MUON, 10), model, gradients)
    mesh = make_mesh(config.Mesh(*sizes))
    with jax.set_mesh(mesh):
        placed = jax.device_put((model, gradients), shardings((model, gradients), mesh))
        found, _ = take_steps(make_optimizer(MUON, 10), *placed)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_an_unknown_optimizer_of_matrices_is_refused():
    with pytest.raises(ValueError, match=r"optimizer\.matrices='shampoo': use one of"):
        config.Optimizer(matrices="shampoo")
