"""T5X: the model class driven by a fake of its interfaces, its checkpoints, and a real run."""

import abc
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_examples
from flax import serialization, traverse_util
from flax.linen.partitioning import get_axis_names

from cm3leon_jax import config
from cm3leon_jax.checkpoint import write_experiment
from cm3leon_jax.interop import t5x
from cm3leon_jax.interop.t5x_checkpoints import read_model, read_state, write_state
from cm3leon_jax.presets import preset
from cm3leon_jax.sharding import make_mesh, shardings
from cm3leon_jax.tokens.objective import code_places
from cm3leon_jax.tokens.packing import INTEGERS
from cm3leon_jax.tokens.vocabulary import BREAK, Vocabulary
from cm3leon_jax.training.optimizer import make_optimizer
from cm3leon_jax.training.step import init_state, token_loss

RULES = {"batch": "data", "vocab": "model", "embed": "data", "mlp": "model", "heads": "model"}


class BaseTransformerModel(abc.ABC):
    """What T5X's base does with what it is given, as far as a subclass can see."""

    def __init__(self, module, input_vocabulary, output_vocabulary, optimizer_def):
        self.module, self.optimizer_def = module, optimizer_def
        self.input_vocabulary, self.output_vocabulary = input_vocabulary, output_vocabulary

    def eval_fn(self, params, batch):
        return self.loss_fn(params, batch, None)

    def predict_batch(self, params, batch, rng=None):
        return self.predict_batch_with_aux(params=params, batch=batch, rng=rng)[0]

    @abc.abstractmethod
    def loss_fn(self, params, batch, dropout_rng): ...

    @abc.abstractmethod
    def _compute_logits(self, params, batch, dropout_rng=None): ...

    @abc.abstractmethod
    def predict_batch_with_aux(self, params, batch, rng=None): ...

    @abc.abstractmethod
    def score_batch(self, params, batch, return_intermediates=False): ...

    @abc.abstractmethod
    def get_initial_variables(self, rng, input_shapes, input_types=None): ...


class Average:
    """clu's mean over what was merged."""

    def __init__(self, total, count):
        self.total, self.count = total, count


FAKE = SimpleNamespace(BaseTransformerModel=BaseTransformerModel)
CHANGES = {"model.code_positions": True, "model.code_features": 8, "objective.z_loss": 1e-3}


def make_model(c: config.Experiment, kind: str = "image"):
    make = t5x.model_class(FAKE, SimpleNamespace(Average=Average), None)
    codebook = jax.random.normal(jax.random.key(9), (c.model.image_codes, c.model.code_features))
    optimizer = make_optimizer(c.optimizer, c.train.steps)
    return make(c, optimizer, "vocabulary", 40, kind, codebook=codebook)


@pytest.fixture(scope="module")
def made():
    from conftest import SMALL

    c = config.replace(config.Experiment(), SMALL | CHANGES)
    model = make_model(c)
    variables = jax.jit(lambda key: model.get_initial_variables(key, {}))(jax.random.PRNGKey(0))
    return c, model, variables


@pytest.fixture(scope="module")
def batch(made) -> dict[str, jax.Array]:
    """Eight rows, a document each; the first two are known by heart below."""
    c = made[0]
    examples, vocabulary = make_examples(c, 8), Vocabulary.of(c.model)
    rows = {name: np.zeros((8, 24), np.int32) for name in INTEGERS}
    rows["codes_at"][:] = -1
    for row in range(8):
        document, _ = examples.tell(row, np.random.default_rng(row))
        ids = document.to_ids(vocabulary, c.model.image_tokens).astype(np.int32)[:25]
        count = len(ids) - 1
        rows["tokens"][row, :count], rows["targets"][row, :count] = ids[:-1], ids[1:]
        rows["segments"][row, :count], rows["positions"][row, :count] = 1, range(count)
        rows["codes_at"][row, :count] = code_places(ids, vocabulary)[:-1]
    weights = (rows["segments"] > 0).astype(np.float32)
    return {name: jnp.asarray(x) for name, x in (rows | {"weights": weights}).items()}


def test_every_parameter_has_axes_that_t5x_knows(made):
    _, _, variables = made
    names = {"/".join(path) for path in traverse_util.flatten_dict(variables["params"].unfreeze())}
    axes = traverse_util.flatten_dict(get_axis_names(variables["params_axes"]).unfreeze())
    assert {"/".join(path) for path in axes} == names
    for path, spec in axes.items():
        shape = variables["params"]
        for name in path:
            shape = shape[name]
        assert len(spec) == shape.ndim
    assert tuple(axes["layers", "value"]) == ("layers", "embed", "heads", "kv")
    assert tuple(axes["codebook",]) == (None, None)


def test_losses_are_those_of_training_on_every_mesh_of_t5x(made, batch):
    c, model, variables = made
    params = variables["params"]
    sums = jax.jit(lambda p, b: token_loss(c, model.network(p), b))(params, batch)
    wanted = sums.means()
    scale = c.train.batch * c.data.row_length
    total = (sums.total + c.objective.z_loss * sums.z_total) / scale
    axes = get_axis_names(variables["params_axes"])

    def evaluate(params, batch):
        loss, means = model.eval_fn(params, batch)
        return loss, {name: (mean.total, mean.count) for name, mean in means.items()}

    for shape in ((8, 1), (2, 4)):
        mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(shape), ("data", "model"))
        put = lambda x, names, mesh=mesh: jax.device_put(  # noqa: E731
            x, jax.NamedSharding(mesh, jax.P(*(RULES.get(name) for name in names)))
        )
        with mesh:  # as T5X sets it
            placed = jax.tree.map(put, params, axes)
            rows = {name: put(x, ("batch",)) for name, x in batch.items()}
            found, metrics = jax.jit(evaluate)(placed, rows)
        assert float(found) == pytest.approx(float(total), rel=1e-5)
        for name in ("loss", "text_loss", "image_loss", "z_loss"):
            mean = float(metrics[name][0] / metrics[name][1])
            assert mean == pytest.approx(float(wanted[name]), rel=1e-5)


def test_checkpoints_are_those_of_t5x_and_come_back_on_another_mesh(made, tmp_path):
    import orbax.checkpoint as ocp

    c, model, variables = made
    optimizer = make_optimizer(c.optimizer, c.train.steps)
    build = lambda key: init_state(c, optimizer, key, model.codebook)  # noqa: E731
    state = jax.jit(build)(jax.random.key(0))._replace(step=jnp.int32(7))
    folder = write_state(tmp_path, state)
    assert folder.name == "checkpoint_7"
    mesh = make_mesh(config.Mesh(2, 2, 2))
    form = jax.eval_shape(build, jax.random.key(0))
    found = read_state(folder, form, shardings(form, mesh))
    jax.tree.map(np.testing.assert_array_equal, found, state)
    assert found.model.layers.query[...].sharding.spec[2] == "tensor"
    parts = read_model(folder, form.model, shardings(form.model, mesh))
    jax.tree.map(np.testing.assert_array_equal, parts, state.model)

    # The same optimizer over T5X's dicts has exactly these names (`OptaxWrapper.state_dict`).
    theirs = jax.eval_shape(optimizer.init, variables["params"])
    wanted = traverse_util.flatten_dict(serialization.to_state_dict(theirs), sep="/")
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.metadata(folder / "state").item_metadata.tree
    assert set(tree) == {"target", "state"}
    there = traverse_util.flatten_dict(tree["state"]["param_states"], sep="/")
    assert {name: x.shape for name, x in there.items()} == {
        name: x.shape for name, x in wanted.items() if hasattr(x, "shape")
    }

    with pytest.raises(ValueError, match=r"checkpoint_7.*is there already"):
        write_state(tmp_path, state)
    other = config.replace(c, {"model.mlp": 32})
    form = t5x.network_form(other)
    with pytest.raises(ValueError, match=r"target/layers/down=\(2, 64, 32\).*\(2, 32, 32\)"):
        read_model(folder, form, shardings(form, mesh))


def test_images_are_drawn_after_what_stands_before_them_and_scores_are_likelihoods(made, batch):
    c, model, variables = made
    params, start = variables["params"], c.model.specials + c.model.text_pieces
    run = jax.jit(lambda p, b, key: model.predict_batch_with_aux(p, b, key, guidance=1.0))
    drawn, aux = run(params, batch, jax.random.key(1))
    assert drawn.shape == (8, c.model.image_tokens)
    assert int(drawn.min()) >= start
    for row, used in zip(np.asarray(batch["tokens"]), aux["prompt_tokens"]):
        assert (row[:used] < start).all()
        assert row[used] >= start or used == (row > 0).sum()
    shuffled = {name: x.at[:, 20:].set(x[::-1, 20:]) for name, x in batch.items()}
    again, _ = run(params, shuffled | {"targets": shuffled["tokens"]}, jax.random.key(1))
    np.testing.assert_array_equal(drawn, again)  # what stands behind the prompt is not seen

    @jax.jit
    def read(params, batch):
        logits = model._compute_logits(params, batch)
        return jax.nn.log_softmax(logits), model.score_batch(params, batch)

    logits, scores = read(params, batch)
    chosen = np.take_along_axis(np.asarray(logits), np.asarray(batch["targets"])[..., None], 2)
    wanted = (chosen[..., 0] * np.asarray(batch["weights"])).sum(1)
    np.testing.assert_allclose(scores, wanted, rtol=1e-5)


def test_texts_start_behind_the_last_break_or_sentinel(made, batch):
    c = made[0]
    prompts = jax.jit(lambda rows: t5x.text_prompts(rows, c))(batch)
    for row, moved, first in zip(batch["tokens"], prompts.tokens, prompts.start):
        ids = np.asarray(moved[int(first) :])
        np.testing.assert_array_equal(ids, row[: len(ids)])
        assert ids[-1] == BREAK
        assert not (np.asarray(row[len(ids) :]) == BREAK).any()


def test_what_t5x_cannot_split_is_refused_with_what_works(tmp_path):
    c = preset("tiny")
    write_experiment(tmp_path, c)
    with pytest.raises(ValueError, match=r"matrices='muon': .*--config\.optimizer\.matrices=adam"):
        t5x.build_model(str(tmp_path), "task")
    recipe = (Path(__file__).resolve().parents[1] / "gin/t5x/tiny.gin").read_text()
    assert f"\nTRAIN_STEPS = {c.train.steps}\n" in recipe
    assert f"\nBATCH_SIZE = {c.train.batch}\n" in recipe
    assert f'"tokens": {c.data.row_length}, ' in recipe
    assert recipe.count(f"period = {c.train.sample_every}\n") == 2


def run_t5x(workdir: Path, out: Path, steps: int, submesh: tuple[int, int], c) -> None:
    """`python -m t5x.train` on four simulated devices, of which submesh[1] share a model."""
    lengths = dict.fromkeys(("tokens", "targets", "weight_codes", "places"), c.data.row_length)
    bound = {
        "WORKDIR": str(workdir),
        "MODEL_DIR": str(out),
        "TRAIN_STEPS": steps,
        "BATCH_SIZE": 8,
        "TASK_FEATURE_LENGTHS": lengths,
        "train.eval_period": 4,
        "train.eval_steps": 1,
        "utils.SaveCheckpointConfig.period": 4,
        "partitioning.PjitPartitioner.model_parallel_submesh": submesh,
    }
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-m", "t5x.train", f"--gin_search_paths={root / 'gin'}"]
    command += ["--gin_file=t5x/tiny.gin", *(f"--gin.{k}={v!r}" for k, v in bound.items())]
    devices = {"NO_GCE_CHECK": "true", "JAX_NUM_CPU_DEVICES": "4"}
    subprocess.run(command, check=True, env=os.environ | devices, cwd=root)


def test_t5x_trains_evaluates_decodes_and_goes_on_from_our_checkpoint_as_from_its_own(tmp_path):
    """Where checkouts of T5X, AirIO and JEstimator are on PYTHONPATH; docs/t5x.md."""
    pytest.importorskip("t5x", reason="T5X is not on PYTHONPATH: its own run is not tested")
    from conftest import SMALL
    from prepared import write_workdir

    c = config.replace(config.Experiment(), SMALL | CHANGES)
    write_experiment(write_workdir(tmp_path / "run", c), c)
    run_t5x(tmp_path / "run", tmp_path / "out", 4, (1, 1), c)
    metrics = (tmp_path / "out" / "inference_eval" / "tiny-metrics.jsonl").read_text()
    assert "code_accuracy" in metrics
    assert "log_likelihood" in metrics

    optimizer, mesh = make_optimizer(c.optimizer, c.train.steps), make_mesh(config.Mesh(1, 1, 1))
    form = jax.eval_shape(lambda key: init_state(c, optimizer, key), jax.random.key(0))
    first = tmp_path / "out" / "checkpoint_4"
    write_state(tmp_path / "ours", read_state(first, form, shardings(form, mesh)))
    shutil.copytree(first, tmp_path / "theirs" / first.name)
    ends = []
    for name in ("ours", "theirs"):
        run_t5x(tmp_path / "run", tmp_path / name, 8, (1, 2), c)
        last = tmp_path / name / "checkpoint_8"
        ends.append(read_state(last, form, shardings(form, mesh)))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(ends))
    jax.tree.map(np.testing.assert_array_equal, *ends)
