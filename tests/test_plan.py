"""Planning: FLOPs, collectives, and what compiling for TPUs that are not there says."""

import json
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CHAMELEON

from cm3leon_jax import config, stages
from cm3leon_jax.chips import devices_of
from cm3leon_jax.cli import main
from cm3leon_jax.plan import (
    DoesNotFit,
    plan_decode,
    plan_training,
    search,
    take_census,
    with_rows,
)
from cm3leon_jax.presets import preset
from cm3leon_jax.sharding import make_mesh
from cm3leon_jax.training.optimizer import make_optimizer
from cm3leon_jax.training.step import init_state, token_loss

HERE = Path(__file__).parent
GOLDEN = json.loads((HERE / "golden" / "collectives.json").read_text())

pytestmark = pytest.mark.optimized


def product_flops(jaxpr) -> int:
    """FLOPs of all matrix products of a program, those of a scan as often as it runs."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (over, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            summed = math.prod(left[axis] for axis in over)
            total += 2 * summed * math.prod(equation.outvars[0].aval.shape)
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        for inner in jax.core.jaxprs_in_params(equation.params):
            total += times * product_flops(inner)
    return total


@pytest.mark.parametrize("form", [{}, CHAMELEON], ids=["cm3leon", "chameleon"])
def test_train_flops_are_those_of_the_programs_products(small, form):
    c = config.replace(small, form | {"model.loss_chunk": 64})  # no logits are computed twice
    batch, length = c.train.batch, c.data.row_length
    state = jax.eval_shape(
        partial(init_state, c, make_optimizer(c.optimizer, 1)), jax.random.key(0)
    )
    names = ("tokens", "targets", "segments", "positions", "codes_at", "weights")
    rows = {name: jnp.ones((batch, length), jnp.int32) for name in names}
    gradient = jax.grad(lambda model: token_loss(c, model, rows).total)
    found = product_flops(jax.make_jaxpr(gradient)(state.model).jaxpr)
    m = c.model
    # The program computes the whole square of attention, and in the backward pass its scores anew.
    half = m.layers * m.width * length * batch * length
    assert found == m.train_flops(length) * batch * length + 6 * half + 2 * half


def test_the_7b_takes_43_gigaflops_a_token():
    assert preset("7b").model.train_flops(4096) == pytest.approx(43.5e9, rel=0.005)


def test_the_census_counts_each_channel_once():
    text = """
  %all-gather.1 = bf16[16,32]{1,0:T(8,128)} all-gather(%p), channel_id=3, dimensions={0}
  %all-gather.2 = bf16[16,32]{1,0} all-gather(%q), channel_id=3, frontend_attributes={}
  %ar = (f32[], f32[4]{0}) all-reduce(%a, %b), channel_id=5, to_apply=%add
  %s = (bf16[4]{0}, bf16[8]{0}) collective-permute-start(%c), channel_id=7
  %d = bf16[8]{0} collective-permute-done(%s)
  %x = s8[10]{0} all-gather(%p), channel_id=9
"""
    assert take_census(text) == {
        "all-gather": (2, 1024 + 10),
        "all-reduce": (1, 16),
        "collective-permute": (1, 16),
    }


@pytest.fixture(scope="module")
def compiled():
    """What a process of its own found of each topology, and what it printed beside it."""
    run = [sys.executable, str(HERE / "plan_aot.py"), *GOLDEN]
    told = {"TPU_STDERR_LOG_LEVEL": "0", "TPU_MIN_LOG_LEVEL": "0"}  # else warnings go to a file
    done = subprocess.run(
        run,
        env=os.environ | told | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.mark.parametrize("topology", sorted(GOLDEN))
def test_a_shallow_model_compiles_for_every_generation(compiled, topology):
    """Where libtpu is newer, a census may differ: look at it, then put it into the golden file."""
    found, printed = compiled[0][topology], compiled[1]
    assert found["state"] <= found["aliased"] <= 1.01 * found["state"]  # donated as a whole
    assert found["has_splash"]
    assert found["total"] < found["memory"]
    assert "nvoluntary full rematerialization" not in printed
    # Without `wrap` a torus is none to the compiler, and every gather of weights an all-reduce.
    matrices = 4 * 512**2 + 2 * 512 * 2048  # of a layer, gathered in bfloat16
    assert found["census"]["all-gather"][1] >= 2 * matrices
    assert found["census"] == GOLDEN[topology]


def test_slices_are_joined_by_data(monkeypatch):
    pytest.importorskip("libtpu", reason="libtpu is not installed: pip install 'jax[tpu]'")
    devices = devices_of("2 x v5e:2x4")
    mesh = make_mesh(config.Mesh(data=4, fsdp=-1, tensor=2), devices)
    assert mesh.devices.shape == (4, 2, 2)
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    assert all(len(set(slices[row].flat)) == 1 for row in range(4))
    assert set(slices.flat) == {0, 1}
    with pytest.raises(ValueError, match=r"mesh\.data=1: 2 slices .* multiple of 2"):
        make_mesh(config.Mesh(data=1, fsdp=-1), devices)
    monkeypatch.setattr(stages, "make_mesh", lambda sizes: make_mesh(sizes, devices))
    monkeypatch.setattr(stages, "MeshSearch", lambda vectors, mesh, *_: mesh)
    assert stages._make_search(config.Retrieval(), np.zeros((1, 3, 4)), HERE).shape["data"] == 16


@pytest.mark.parametrize(
    ("topology", "rule"),
    [
        ("v3:4x4", "generations are v4, v5e, v5p, v6e"),
        ("v5e", "give generation and shape"),
        ("v5p:4x4", "v5p slices have 3 dimensions; give for example v5p:4x4x4"),
    ],
)
def test_an_unknown_topology_is_one_clear_line(topology, rule):
    with pytest.raises(ValueError, match=rule):
        devices_of(topology)


def test_rows_that_do_not_divide_name_those_that_do(small):
    pytest.importorskip("libtpu", reason="libtpu is not installed: pip install 'jax[tpu]'")
    c = config.replace(small, {"train.batch": 48})
    assert with_rows(c, "v5e:2x2", 3).train.accumulate == 4
    with pytest.raises(ValueError, match=r"rows=5: a chip has 12 rows .* one of \[1, 2, 3, 4, 6"):
        with_rows(c, "v5e:2x2", 5)
    with pytest.raises(ValueError, match=r"train\.batch=8: .* must be a multiple of .* = 16"):
        next(search(small, "v5e:4x4"))  # not: nothing fits


def test_what_does_not_fit_says_what_to_change(small):
    pytest.importorskip("libtpu", reason="libtpu is not installed: pip install 'jax[tpu]'")
    wide = {"model.width": 8192, "model.mlp": 65536, "model.layers": 1, "model.heads": 64}
    with pytest.raises(DoesNotFit, match=r"TPU v5 lite: needs .*G.* use fewer rows .* more chips"):
        plan_training(config.replace(small, wide), "v5e:1x1")


def test_decode_is_planned_with_weights_split_by_heads(small):
    pytest.importorskip("libtpu", reason="libtpu is not installed: pip install 'jax[tpu]'")
    plan = plan_decode(small, "v5e:2x4", images=4)
    assert plan.mesh == (2, 1, 4)  # 4 heads
    whole = 4 * small.model.parameters
    assert whole / 4 < plan.kinds["parameters"] < whole


def test_the_command_prints_what_is_measured_and_what_is_estimated(capsys):
    pytest.importorskip("libtpu", reason="libtpu is not installed: pip install 'jax[tpu]'")
    recipe = ["--config", "tiny", "--config.train.batch=2", "--config.model.layers=1"]
    assert main(["plan", *recipe, "--topology", "v5e:1x1", "--rows", "1"]) == 0
    told = capsys.readouterr().out
    assert "the training step: 2 rows of 192 tokens,\nin 2 passes, remat none." in told
    assert "Estimated, not measured" in told
    assert main(["plan", *recipe, "--topology", "v5e:1x1", "--search"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert sum("| fits |" in line for line in told) == 3 * 2  # 1 and 2 rows, three policies
    assert told[-1] == "The least computed again: remat minimal with 2 rows a chip at once."
    assert main(["plan", "--topology", "v5e:1x1"]) == 2
