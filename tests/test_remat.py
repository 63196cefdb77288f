"""Remat presets: equal gradients, and exactly the named activations kept."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CHAMELEON
from flax import nnx
from jax.ad_checkpoint import print_saved_residuals

from cm3leon_jax import config
from cm3leon_jax.models import transformer
from cm3leon_jax.models.attention import attend
from cm3leon_jax.models.transformer import Transformer
from cm3leon_jax.sharding import make_mesh

L, B, T, D, N, K, H, F = 3, 2, 128, 32, 4, 2, 8, 64


@pytest.fixture
def form(small: config.Experiment) -> config.Experiment:
    return config.replace(small, CHAMELEON | {"model.layers": L, "model.context": T})


def loss(model: Transformer) -> jax.Array:
    tokens = jax.random.randint(jax.random.key(1), (B, T), 5, model.config.vocabulary)
    segments = jnp.broadcast_to(jnp.arange(T) // 50, tokens.shape)
    return jnp.square(model(tokens, segments, segments, segments)).sum()


def build(c: config.Experiment, preset: str) -> Transformer:
    return Transformer(config.replace(c, {"model.remat": preset}).model, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(("kernel", "sizes"), [("xla", (1, 1, 1)), ("splash", (1, 2, 2))])
def test_no_preset_changes_a_gradient(form, monkeypatch, kernel, sizes):
    monkeypatch.setattr(transformer, "attend", partial(attend, kernel=kernel))
    size = int(np.prod(sizes))
    gradients = {}
    with jax.set_mesh(make_mesh(config.Mesh(*sizes), jax.devices()[:size])):
        for preset in ("none", "minimal", "offload", "full")[: 4 if kernel == "xla" else 3]:
            gradients[preset] = jax.jit(jax.grad(loss))(build(form, preset))
    plain = jax.tree.leaves(gradients.pop("none"))
    for preset, found in gradients.items():
        for a, b in zip(jax.tree.leaves(found), plain, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4, err_msg=preset)


INPUT, QUERY, MLP = (B, T, D), (B, T, N, H), (B, T, F)
KEY = (B, T, K, H)
# Splash puts heads first and keeps its log-sum too, so that the kernel need not run again.
CONTEXT = {"xla": [(B, T, N, H)], "splash": [(B, N, T, H), (B, N, T)]}


@pytest.mark.parametrize("kernel", ["xla", "splash"])
@pytest.mark.parametrize("is_sharded", [False, True])
def test_a_preset_keeps_exactly_its_named_activations(
    form, monkeypatch, capsys, kernel, is_sharded
):
    monkeypatch.setattr(transformer, "attend", partial(attend, kernel=kernel))
    context = CONTEXT[kernel]
    if kernel == "splash" and is_sharded:  # each of the 4 devices' half of B and half of N
        context = [(4 * B // 2, N // 2, T, H), (4 * B // 2, N // 2, T)]
    attention = [QUERY, KEY, KEY, *context]
    mesh = make_mesh(config.Mesh(1, 2, 2), jax.devices()[:4])
    for preset, kept, moved in (
        ("full", [INPUT], []),
        ("minimal", [INPUT, *attention, MLP, MLP], []),
        ("offload", [], [INPUT, *attention]),
    ):
        if is_sharded:
            with jax.set_mesh(mesh):
                print_saved_residuals(loss, build(form, preset))
        else:
            print_saved_residuals(loss, build(form, preset))
        found: dict[str, list[tuple[int, ...]]] = {"": [], "<host>": []}
        for line in capsys.readouterr().out.splitlines():
            stacked = re.match(rf"f32(<host>|)\[{L},([\d,]+)\] output of scan", line)
            if stacked:
                shape = tuple(map(int, stacked[2].split(",")))
                found[stacked[1]].append(shape)
        assert sorted(found[""]) == sorted(kept), preset
        assert sorted(found["<host>"]) == sorted(moved), preset
