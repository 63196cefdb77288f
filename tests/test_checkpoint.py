"""Checkpoints: whole or absent, on any mesh, and never through pickle."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cm3leon_jax import checkpoint, config
from cm3leon_jax.checkpoint import Checkpoints
from cm3leon_jax.models.transformer import Transformer
from cm3leon_jax.sharding import make_mesh, shardings
from cm3leon_jax.training.optimizer import make_optimizer
from cm3leon_jax.training.step import init_sharded, init_state


def make_state(c: config.Experiment, mesh: jax.sharding.Mesh, seed: int = 0):
    optimizer = make_optimizer(c.optimizer, 10)
    return init_sharded(lambda key: init_state(c, optimizer, key), jax.random.key(seed), mesh)


def assert_equal(a, b) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_a_state_comes_back_on_another_mesh(small, tmp_path):
    split, single = (
        make_mesh(config.Mesh(2, 2, 2)),
        make_mesh(config.Mesh(fsdp=1), jax.devices()[:1]),
    )
    state = make_state(small, split)
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(3, state, [1, 2, 3])
    checkpoints.close()
    other = make_state(small, single, seed=1)
    restored = Checkpoints(tmp_path, keep=2).restore(other, shardings(other, single))
    assert (restored.step, restored.position) == (3, [1, 2, 3])
    assert_equal(restored.state, state)
    leaves = zip(jax.tree.leaves(restored.state), jax.tree.leaves(shardings(other, single)))
    assert all(x.sharding.is_equivalent_to(at, x.ndim) for x, at in leaves)


def test_only_the_newest_are_kept(small, tmp_path):
    mesh = make_mesh(config.Mesh(fsdp=1), jax.devices()[:1])
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, make_state(small, mesh, step), step)
    checkpoints.close()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.isdigit()) == ["2", "3"]


def test_a_half_written_save_is_ignored_and_swept(small, tmp_path):
    mesh = make_mesh(config.Mesh(fsdp=1), jax.devices()[:1])
    state = make_state(small, mesh)
    checkpoints = Checkpoints(tmp_path, keep=3)
    checkpoints.save(4, state, 4)
    checkpoints.close()
    torn = tmp_path / "8.orbax-checkpoint-tmp"  # as a kill during a save leaves it
    (torn / "state").mkdir(parents=True)
    (torn / "state" / "manifest.ocdbt").write_bytes(b"\0" * 10)
    restored = Checkpoints(tmp_path, keep=3).restore(state, shardings(state, mesh))
    assert restored.step == 4
    assert_equal(restored.state, state)


def test_nothing_to_restore_is_none(small, tmp_path):
    mesh = make_mesh(config.Mesh(fsdp=1), jax.devices()[:1])
    state = make_state(small, mesh)
    assert Checkpoints(tmp_path, keep=1).restore(state, shardings(state, mesh)) is None


def test_a_network_of_another_shape_is_refused_in_one_line(small, tmp_path):
    mesh = make_mesh(config.Mesh(fsdp=1), jax.devices()[:1])
    checkpoint.save_network(tmp_path / "net", Transformer(small.model, rngs=nnx.Rngs(0)))
    for change in ({"model.width": 64}, {"model.tie_embeddings": False}):
        c = config.replace(small, change).model
        form = jax.eval_shape(lambda c=c: Transformer(c, rngs=nnx.Rngs(0)))
        with pytest.raises(ValueError, match="does not hold the network") as error:
            checkpoint.load_network(tmp_path / "net", form, shardings(form, mesh))
        assert "\n" not in str(error.value)


def test_names_are_those_of_the_attributes(small):
    model = Transformer(small.model, rngs=nnx.Rngs(0))
    names = checkpoint.to_names(model)
    assert set(names) == {"embedding", "positions", "layers"}
    assert set(names["layers"]) == {"query", "key", "value", "out", "up", "down"}
    doubled = jax.tree.map(lambda x: 2 * x, names)
    again = checkpoint.from_names(model, doubled)
    np.testing.assert_array_equal(again.layers.up[...], 2 * model.layers.up[...])


def test_the_config_comes_back(small, tmp_path):
    checkpoint.write_experiment(tmp_path, small)
    assert checkpoint.read_experiment(tmp_path) == small
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        checkpoint.read_experiment(tmp_path)
    with pytest.raises(ValueError, match=r"has no config.json"):
        checkpoint.read_experiment(tmp_path / "nowhere")


def test_no_pickle_in_a_checkpoint(small, tmp_path):
    checkpoint.save_network(tmp_path / "net", {"a": jnp.arange(3)})
    files = [path for path in (tmp_path / "net").rglob("*") if path.is_file()]
    assert files
    # Every pickle since protocol 2 starts with byte 0x80 and ends with a full stop.
    assert not [f for f in files if (b := f.read_bytes())[:1] == b"\x80" and b[-1:] == b"."]


FULL_DISK = """
import resource, signal, sys
import jax.numpy as jnp
from cm3leon_jax.checkpoint import Checkpoints

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writes beyond the limit fail
checkpoints = Checkpoints(sys.argv[1], keep=1)
checkpoints.save(1, {"x": jnp.arange(50_000)}, 1)
checkpoints._checkpointer.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    checkpoints.save(2, {"x": jnp.arange(50_000, 0, -1)}, 2)
    checkpoints.close()
except Exception:
    sys.exit(7)
"""


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path):
    run = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True)
    assert run.returncode == 7, run.stderr.decode()[-2000:]
    state = {"x": jnp.zeros(50_000, int)}
    mesh = make_mesh(config.Mesh(fsdp=1), jax.devices()[:1])
    restored = Checkpoints(tmp_path, keep=1).restore(state, shardings(state, mesh))
    assert (restored.step, restored.position) == (1, 1)
    np.testing.assert_array_equal(restored.state["x"], np.arange(50_000))
