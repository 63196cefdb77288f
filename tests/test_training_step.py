"""The step: the same update however it is split over time and devices."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SMALL, make_examples, make_text
from flax import nnx

from cm3leon_jax import config
from cm3leon_jax.data.loader import token_batches
from cm3leon_jax.decoding.engine import count_codes
from cm3leon_jax.models.losses import cross_entropy
from cm3leon_jax.models.transformer import Transformer
from cm3leon_jax.sharding import make_mesh, shardings
from cm3leon_jax.training.optimizer import make_optimizer, make_schedule
from cm3leon_jax.training.step import (
    TrainState,
    compile_step,
    eval_step,
    init_sharded,
    init_state,
    token_loss,
    train_step,
)


def prepare(c: config.Experiment, mesh: jax.sharding.Mesh | None = None):
    """A fresh state, the compiled step and the stream of batches."""
    mesh = mesh or make_mesh(config.Mesh(fsdp=1), jax.devices()[:1])
    optimizer = make_optimizer(c.optimizer, c.train.steps)
    codebook = None
    if c.model.code_features:
        codebook = jnp.ones((c.model.image_codes, c.model.code_features))
    init = lambda key: init_state(c, optimizer, key, codebook)  # noqa: E731
    state = init_sharded(init, jax.random.key(0), mesh)
    schedule = make_schedule(c.optimizer, c.train.steps)
    step = compile_step(partial(train_step, c, optimizer, schedule), state, mesh)
    return (
        state,
        step,
        iter(token_batches([(make_examples(c), 1.0)], make_text(), c)),
    )


def run(c: config.Experiment, mesh: jax.sharding.Mesh | None = None, steps: int = 3):
    state, step, batches = prepare(c, mesh)
    losses = []
    with jax.set_mesh(mesh or make_mesh(config.Mesh(fsdp=1), jax.devices()[:1])):
        for _ in range(steps):
            state, metrics = step(state, next(batches))
            losses.append(float(metrics["loss"]))
    return jax.device_get(state), losses


def assert_close(a: TrainState, b: TrainState, atol: float) -> None:
    for x, y in zip(jax.tree.leaves(a.model), jax.tree.leaves(b.model), strict=True):
        np.testing.assert_allclose(x, y, atol=atol)


# Adam divides by the root of tiny second moments: epsilon keeps rounding from being amplified.
STEADY = config.replace(config.Experiment(), SMALL | {"optimizer.epsilon": 1e-3})


@cache
def run_on_one_device():
    return run(STEADY)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_sharded_training_equals_one_device(sizes):
    single, losses = run_on_one_device()
    sharded, sharded_losses = run(STEADY, make_mesh(config.Mesh(*sizes)))
    np.testing.assert_allclose(sharded_losses, losses, rtol=1e-5)
    assert_close(sharded, single, atol=2e-5)


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_gradients_equal_one_big_batch(parts):
    whole, losses = run_on_one_device()
    split, split_losses = run(config.replace(STEADY, {"train.accumulate": parts}))
    np.testing.assert_allclose(split_losses, losses, rtol=1e-5)
    assert_close(split, whole, atol=2e-5)


def test_evaluation_takes_as_many_rows_at_once_as_training_and_gives_the_same(small, monkeypatch):
    model = Transformer(small.model, rngs=nnx.Rngs(0))
    batch = next(iter(token_batches([(make_examples(small), 1.0)], make_text(), small)))
    rows = []

    def counted(hidden, *rest):
        rows.append(len(hidden))
        return cross_entropy(hidden, *rest)

    monkeypatch.setattr("cm3leon_jax.training.step.cross_entropy", counted)
    found = []
    for parts in (1, 2):
        c = config.replace(small, {"train.accumulate": parts})
        found.append(jax.jit(partial(eval_step, c))(model, batch))
    assert list(dict.fromkeys(rows)) == [8, 4]
    assert found[0].keys() == found[1].keys()
    for name, loss in found[0].items():
        np.testing.assert_allclose(found[1][name], loss, rtol=1e-5, err_msg=name)


def test_tokens_are_counted_whatever_their_weights(small):
    state, step, batches = prepare(small)
    batch = next(batches)
    _, metrics = step(state, batch | {"weights": batch["weights"] / 4})
    assert float(metrics["tokens"]) == np.count_nonzero(batch["segments"])


def test_parameters_rest_where_the_table_says(small):
    mesh = make_mesh(config.Mesh(2, 2, 2))
    state, _, _ = prepare(small, mesh)
    query = state.model.layers.query[...].sharding.spec
    assert tuple(query) == (None, "fsdp", "tensor", None)
    moments = [x for x in jax.tree.leaves(state.moments) if x.shape == (2, 32, 4, 8)]
    assert len(moments) >= 2
    assert all(tuple(x.sharding.spec) == (None, "fsdp", "tensor", None) for x in moments)


def test_bfloat16_first_moments_train_like_float32_ones(small):
    plain, losses = run(small, steps=12)
    changed = config.replace(small, {"optimizer.moment_dtype": "bfloat16"})
    state, half_losses = run(changed, steps=12)

    def moments(state: TrainState, name: str) -> set[str]:
        at = jax.tree_util.tree_leaves_with_path(state.moments)
        return {str(x.dtype) for path, x in at if f".{name}." in jax.tree_util.keystr(path)}

    assert moments(plain, "mu") == {"float32"}
    assert moments(state, "mu") == {"bfloat16"}
    assert moments(state, "nu") == {"float32"}
    # From 4.99 to 3.5 nats. Measured over 40 steps: at most 0.003 apart.
    np.testing.assert_allclose(half_losses, losses, atol=0.01)


@pytest.mark.optimized
def test_one_trace_and_the_whole_state_donated(small):
    c, traces = small, []
    mesh = make_mesh(config.Mesh(fsdp=1), jax.devices()[:1])
    optimizer = make_optimizer(c.optimizer, c.train.steps)
    schedule = make_schedule(c.optimizer, c.train.steps)

    def counted(state, batch):
        traces.append(1)
        return train_step(c, optimizer, schedule, state, batch)

    state, _, batches = prepare(c, mesh)
    step = compile_step(counted, state, mesh)
    batch = next(batches)
    memory = step.lower(state, batch).compile().memory_analysis()
    state_bytes = sum(x.nbytes for x in jax.tree.leaves(state))
    assert memory.alias_size_in_bytes >= state_bytes
    first = jax.tree.leaves(state.model)
    for _ in range(4):
        state, _ = step(state, next(batches))
    assert len(traces) == 1
    assert all(x.is_deleted() for x in first)


def test_training_overfits(small):
    c = config.replace(small, {"train.steps": 150, "objective.rate": 0.0, "train.batch": 2})
    examples = make_examples(c, 4)
    state, step, _ = prepare(c)
    batch = next(iter(token_batches([(examples, 1.0)], make_text(), c)))
    for _ in range(150):
        state, metrics = step(state, batch)
    # What cannot be known is which document starts: log(4) per document.
    ends = float(metrics["loss"] * metrics["tokens"]) / np.sum(batch["positions"] == 0)
    assert ends < np.log(4) + 2.0
    assert float(jax.jit(partial(eval_step, c))(state.model, batch)["loss"]) < 0.3


@pytest.mark.parametrize("has_places", [True, False])
def test_the_loss_sees_where_in_its_image_a_code_stands(small, has_places):
    spans = {"objective.rate": 2.0, "objective.whole_segment": 0.0}
    c = config.replace(small, spans | {"model.code_positions": has_places})
    model = Transformer(c.model, rngs=nnx.Rngs(0))
    batch = next(iter(token_batches([(make_examples(c), 1.0)], make_text(), c)))
    # Counted anew behind each hole, as if the fill were an image of its own.
    counted = batch | {
        "codes_at": np.stack([count_codes(row, model.image_start) for row in batch["tokens"]])
    }
    assert np.any(counted["codes_at"] != batch["codes_at"])
    trained = jax.jit(lambda model, batch: token_loss(c, model, batch).means()["loss"])
    evaluated = jax.jit(lambda model, batch: eval_step(c, model, batch)["loss"])
    for loss in (trained, evaluated):
        difference = float(loss(model, batch) - loss(model, counted))
        assert (abs(difference) > 1e-4) == has_places


def test_the_codebook_is_not_trained_and_its_projection_is(small):
    c = config.replace(small, {"model.code_features": 8})
    before, _, _ = prepare(c)
    projection = np.asarray(before.model.code_projection[...])
    after, _ = run(c)
    np.testing.assert_array_equal(after.model.codebook[...], np.ones((64, 8)))
    assert np.abs(after.model.code_projection[...] - projection).max() > 1e-4


def test_weights_decay_and_positions_do_not(small):
    c = config.replace(small, {"optimizer.weight_decay": 0.5})
    optimizer = make_optimizer(c.optimizer, c.train.steps)
    state = jax.jit(partial(init_state, c, optimizer))(jax.random.key(0))
    zeros, update = jax.tree.map(np.zeros_like, state.model), jax.jit(optimizer.update)
    _, moments = update(zeros, state.moments, state.model)  # the warmup starts at 0
    updates, _ = update(zeros, moments, state.model)
    rate = float(make_schedule(c.optimizer, c.train.steps)(1))
    expected = -rate * 0.5 * state.model.layers.up[...]
    np.testing.assert_allclose(updates.layers.up[...], expected, rtol=1e-5)
    assert not np.any(updates.positions[...])


def test_a_parameter_without_a_rule_is_an_error(small):
    optimizer = make_optimizer(small.optimizer, 10)
    with pytest.raises(ValueError, match="mystery: no rule"):
        optimizer.init({"mystery": jnp.zeros(3)})


def test_schedule_warms_up_and_decays_to_its_end():
    c = config.Optimizer(learning_rate=1.0, warmup_steps=10, end_fraction=0.1)
    for kind, middle in (("linear", 0.55), ("cosine", 0.55), ("constant", 1.0)):
        schedule = make_schedule(dataclasses.replace(c, schedule=kind), 110)
        values = [float(schedule(step)) for step in (0, 5, 10, 60, 110)]
        end = 1.0 if kind == "constant" else 0.1
        np.testing.assert_allclose(values, [0, 0.5, 1, middle, end], atol=1e-6)


@dataclasses.dataclass(frozen=True)
class Gpu:
    """As JAX shows those of several hosts."""

    id: int
    slice_index: int  # the host
    platform: str = "gpu"
    device_kind: str = "NVIDIA H100 80GB HBM3"


def test_gpus_of_several_hosts_take_any_mesh():
    hosts = [Gpu(number, number // 4) for number in range(8)]
    for sizes in ((1, 8, 1), (2, 2, 2), (1, 1, 8)):
        mesh = make_mesh(config.Mesh(*sizes), hosts)
        assert [gpu.id for gpu in mesh.devices.flat] == list(range(8))
        assert mesh.devices.shape == sizes
        assert mesh.axis_types == make_mesh(config.Mesh(*sizes)).axis_types


def test_indivisible_sizes_name_what_would_fit(small):
    for sizes in (config.Mesh(data=3, fsdp=-1), config.Mesh(data=16, fsdp=1)):
        with pytest.raises(
            ValueError,
            match=r"there are 8 devices; use numbers whose product is one of \[1, 2, 4, 8\]",
        ):
            make_mesh(sizes)
    assert make_mesh(config.Mesh(data=3, fsdp=1)).size == 3  # the first three
    mesh = make_mesh(config.Mesh(data=1, fsdp=1, tensor=8))
    c = config.replace(small, {"model.heads": 4})
    optimizer = make_optimizer(c.optimizer, 10)
    form = jax.eval_shape(lambda key: init_state(c, optimizer, key), jax.random.key(0))
    with pytest.raises(
        ValueError, match=r"size 4 does not divide over mesh axis tensor = 8.*\[1, 2, 4\]"
    ):
        shardings(form, mesh)
