"""train.start_from: a new run begins with the parameters of a bundle or of another run."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import SMALL, WORDS
from prepared import write_workdir

from cm3leon_jax import checkpoint, config
from cm3leon_jax.cli import main
from cm3leon_jax.sharding import make_mesh, shardings
from cm3leon_jax.stages import open_workdir, train_transformer
from cm3leon_jax.start import open_start
from cm3leon_jax.tokens.text import TextTokenizer
from cm3leon_jax.training.optimizer import make_optimizer
from cm3leon_jax.training.step import init_state, start_state

FIRST = SMALL | {"train.steps": 4, "train.seed": 1, "mesh.fsdp": 2, "mesh.data": 4}
NO_STEP = {"optimizer.learning_rate": 1e-30}  # so that what a run ends with is what it began with


def experiment(**changes) -> config.Experiment:
    return config.replace(config.Experiment(), FIRST | changes)


def copy_parts(run: Path, folder: Path) -> Path:
    """A work directory with the tokenizers and documents of another."""
    for name in ("documents", "image_tokenizer"):
        shutil.copytree(run / name, folder / name)
    shutil.copy(run / "text.model", folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run that is done: its newest checkpoint and its bundle hold the same parameters."""
    c = experiment()
    workdir = write_workdir(tmp_path_factory.mktemp("runs") / "first", c)
    open_workdir(c, workdir)
    train_transformer(c, workdir)
    return workdir


def parameters(bundle: Path) -> list[np.ndarray]:
    from orbax.checkpoint import v1 as ocp

    return [np.asarray(x) for x in jax.tree.leaves(ocp.load(bundle / "transformer"))]


@pytest.mark.parametrize("part", ["bundle", "", "checkpoint"])
def test_a_new_run_begins_with_the_parameters_of_a_bundle_or_a_run(run, tmp_path, part):
    start = run / "bundle" if part == "bundle" else run
    if part == "checkpoint":  # a run that is not done
        start = tmp_path / "unfinished"
        shutil.copytree(run, start, ignore=shutil.ignore_patterns("bundle"))
    changes = {"train.start_from": str(start), "train.seed": 5, "train.steps": 1}
    c = experiment(**changes, **NO_STEP)
    workdir = copy_parts(run, tmp_path / "second")
    open_workdir(c, workdir)
    ours, theirs = parameters(train_transformer(c, workdir)), parameters(run / "bundle")
    for mine, given in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine, given)
    written = (workdir / "bundle" / "config.json").read_text()
    assert str(start) not in written
    assert checkpoint.read_experiment(workdir / "bundle").train.start_from == ""
    assert (
        "started from the parameters of another model"
        in (workdir / "bundle" / "card.md").read_text()
    )


def test_the_state_is_fresh_but_for_its_parameters_and_lies_on_the_mesh(run):
    c = experiment(**{"train.start_from": str(run / "bundle"), "mesh.data": 2, "mesh.tensor": 2})
    mesh = make_mesh(c.mesh)
    optimizer = make_optimizer(c.optimizer, c.train.steps)
    state = start_state(optimizer, open_start(c, run, mesh), mesh)
    fresh = init_state(c, optimizer, jax.random.key(0))
    places = jax.tree.leaves(shardings(fresh, mesh))
    for mine, place in zip(jax.tree.leaves(state), places, strict=True):
        assert mine.sharding == place
    query = state.model.layers.query[...].sharding.spec
    assert tuple(query) == (None, "fsdp", "tensor", None)
    assert int(state.step) == 0
    for mine, new in zip(jax.tree.leaves(state.moments), jax.tree.leaves(fresh.moments)):
        np.testing.assert_array_equal(mine, new)


def test_a_resumed_run_ignores_where_it_started(run, tmp_path):
    start, workdir = tmp_path / "start", copy_parts(run, tmp_path / "second")
    shutil.copytree(run / "bundle", start)
    c = experiment(**{"train.start_from": str(start), "train.steps": 3})
    open_workdir(c, workdir)
    train_transformer(c, workdir)
    first = parameters(workdir / "bundle")
    shutil.rmtree(workdir / "bundle")
    shutil.rmtree(start)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(first, parameters(train_transformer(c, workdir)), strict=True)
    )


def test_what_a_run_started_from_may_not_change(run, tmp_path):
    workdir = copy_parts(run, tmp_path / "second")
    (workdir / "transformer").mkdir()
    open_workdir(experiment(**{"train.start_from": "a"}), workdir)
    with pytest.raises(ValueError, match=r"made with train\.start_from='a', now it is 'b'"):
        open_workdir(experiment(**{"train.start_from": "b"}), workdir)


def test_how_a_network_was_watched_may_change_and_what_it_is_made_from_not(run, tmp_path):
    workdir = copy_parts(run, tmp_path / "second")
    open_workdir(experiment(), workdir)
    watched = {"train.keep": 7, "image_tokenizer.train.hang_seconds": 5}
    open_workdir(experiment(**watched, **{"image_tokenizer.train.sample_every": 3}), workdir)
    with pytest.raises(ValueError, match=r"with image_tokenizer\.train\.batch=128, now it is 8"):
        open_workdir(experiment(**{"image_tokenizer.train.batch": 8}), workdir)


def begin(workdir: Path, start: Path, **changes) -> None:
    c = experiment(**{"train.start_from": str(start)}, **changes)
    open_start(c, workdir, make_mesh(c.mesh))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.width": 64}, "its model has model.width=32, this run 64; give both the same"),
        ({"model.activation": "relu"}, "model.activation='gelu', this run 'relu'"),
        ({"model.specials": 17, "model.text_pieces": 47}, "model.specials=16, this run 17"),
        ({"model.context": 80}, "does not hold the network that config.json describes"),
    ],
)
@pytest.mark.parametrize("part", ["bundle", "checkpoint"])
def test_a_model_of_another_form_is_one_clear_line(run, tmp_path, part, changes, message):
    start = run / "bundle"
    if part == "checkpoint":
        start = tmp_path / "unfinished"
        shutil.copytree(run, start, ignore=shutil.ignore_patterns("bundle"))
    with pytest.raises(ValueError, match=r"start_from|checkpoints|transformer") as caught:
        begin(run, start, **changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_tokenizers_are_refused_with_both_fingerprints(run, tmp_path):
    other = write_workdir(tmp_path / "other", experiment(), seed=9)
    both = r"start_from.* trained with the image tokenizer \w{16}, .*/other has \w{16}; copy"
    with pytest.raises(ValueError, match=both):
        begin(other, run)
    TextTokenizer.train([" ".join(WORDS[2:])] * 9, other / "text.model", 40)
    with pytest.raises(ValueError, match=r"the text tokenizer \w{16}, .*/other has \w{16}; copy"):
        begin(other, run)


def test_a_folder_without_a_model_is_one_line(run, tmp_path, capsys):
    with pytest.raises(ValueError, match=r"has no config\.json; give the folder of a run or of a"):
        begin(run, tmp_path / "nothing")
    empty = tmp_path / "empty"
    shutil.copytree(run, empty, ignore=shutil.ignore_patterns("bundle", "checkpoints"))
    with pytest.raises(ValueError, match="holds no checkpoint; give a run that has saved one"):
        begin(run, empty)
    workdir = copy_parts(run, tmp_path / "second")
    open_workdir(experiment(**{"train.start_from": str(tmp_path / "nothing")}), workdir)
    assert main(["train", "--workdir", str(workdir)]) == 2
    assert capsys.readouterr().err.startswith(f"cm3leon: {tmp_path / 'nothing'}: has no config")


@pytest.mark.parametrize("part", ["", "bundle"])
def test_a_run_takes_the_tokenizers_of_what_it_starts_from_and_with_a_mixture_its_documents(
    run, tmp_path, part
):
    start = run / part
    c = experiment(**{"train.start_from": str(start), "train.steps": 1}, **NO_STEP)
    open_workdir(c, tmp_path)
    assert (tmp_path / "text.model").read_bytes() == (run / "text.model").read_bytes()
    assert not (tmp_path / "documents").exists()
    mixed = config.replace(c, {"data.mixture": f"{run}:image_first=1"})
    open_workdir(mixed, tmp_path)
    assert (tmp_path / "documents").exists() == (part == "")
    if part == "":
        bundle = train_transformer(mixed, tmp_path)
        for ours, theirs in zip(parameters(bundle), parameters(run / "bundle"), strict=True):
            np.testing.assert_array_equal(ours, theirs)
