"""recipes.py: both front ends give the shipped experiments, and their errors are one clear line."""

import dataclasses
import functools
import json
import math
import os
import subprocess
import sys
import typing
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from conftest import QUICK_FLAGS, RETRIEVER, SMALL
from prepared import write_workdir

import gin
from cm3leon_jax import recipes
from cm3leon_jax.config import Experiment, replace
from cm3leon_jax.presets import PRESETS, RUNS, preset, with_run
from cm3leon_jax.training.optimizer import make_optimizer, make_schedule
from cm3leon_jax.training.step import init_state, train_step

ROOT = Path(__file__).resolve().parents[1]
HEAD = "from __gin__ import dynamic_registration\nfrom cm3leon_jax import config\n"
WIRED = HEAD + 'include "experiment.gin"\n'


def read(tmp_path: Path, text: str) -> Experiment:
    (tmp_path / "mine.gin").write_text(text)
    return recipes.from_gin([str(tmp_path / "mine.gin")])


@pytest.mark.parametrize("name", PRESETS)
def test_both_front_ends_give_the_preset(name):
    assert recipes.from_gin([f"models/{name}.gin"]) == preset(name)
    assert recipes.from_config(name) == preset(name)


PAPER = [name for name in PRESETS if not name.startswith(("tiny", "scenes"))]


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", PAPER)
def test_both_front_ends_give_the_run_of_a_preset(name, run):
    wanted = with_run(preset(name), run)
    assert recipes.from_gin([f"models/{name}.gin", f"runs/{run}.gin"]) == wanted
    assert recipes.from_config(f"{run}:{name}") == wanted
    assert recipes.from_config(f"{run}:{name}", {"train.steps": "2"}).train.steps == 2


def test_pretraining_keeps_the_presets_of_the_paper_but_for_the_rhythm_of_a_pod():
    rhythm = {
        "data.count": 0,
        "optimizer.moment_dtype": "bfloat16",
        "train.log_every": 20,
        "train.sample_every": 5000,
        "train.save_every": 500,
    }
    for name in ("350m", "760m", "7b"):
        assert with_run(preset(name), "pretrain") == replace(preset(name), rhythm)


def test_fine_tuning_has_the_batch_and_tokens_of_the_paper():
    train = with_run(preset("7b"), "sft").train
    assert train.batch * 4096 == pytest.approx(2e6, rel=0.05)  # table 4
    assert train.steps * train.batch * 4096 == pytest.approx(30e9, rel=1e-3)


@pytest.mark.parametrize("name", [*PRESETS, *(f"{run}:{name}" for run in RUNS for name in PAPER)])
def test_every_recipe_has_a_train_step(name):
    c = recipes.from_config(name)
    optimizer = make_optimizer(c.optimizer, c.train.steps)
    features = (c.model.image_codes, c.model.code_features)
    codebook = jnp.zeros(features) if c.model.code_features else None
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(lambda key: init_state(c, optimizer, key, codebook), key)
    trained = {path[0].name: leaf for path, leaf in jax.tree.leaves_with_path(state.model)}
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(state.model))
    assert count - math.prod(features) * ("codebook" in trained) == c.model.parameters
    shape = (c.train.batch, c.data.row_length)
    names = ("tokens", "targets", "segments", "positions", "codes_at")
    whole = dict.fromkeys(names, jnp.int32)
    kinds = whole | {"weights": jnp.float32}
    batch = {name: jax.ShapeDtypeStruct(shape, kind) for name, kind in kinds.items()}
    step = functools.partial(train_step, c, optimizer, make_schedule(c.optimizer, c.train.steps))
    after, metrics = jax.eval_shape(step, state, batch)
    assert jax.tree.leaves(after) == jax.tree.leaves(state)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert {x.shape for x in metrics.values()} == {()}


def test_two_real_steps_of_pretraining_on_eight_devices_from_the_command_line(tmp_path):
    tiny = SMALL | RETRIEVER | {"train.steps": 2, "train.log_every": 1, "train.save_every": 2}
    tiny |= {"optimizer.warmup_steps": 1, "retrieval.most": 2}
    recipe = ["--gin_file", "models/350m.gin", "--gin_file", "runs/pretrain.gin"]
    recipe += [f"--gin.{field}={value}" for field, value in tiny.items()]
    c, _ = recipes.from_arguments(recipe)
    workdir = write_workdir(tmp_path / "run", c)
    main = "import sys; from cm3leon_jax.cli import main; sys.exit(main())"  # as `cm3leon` does
    command = [sys.executable, "-c", main, "train", "--workdir", workdir, *recipe]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": str(ROOT)}
    environment["XLA_FLAGS"] = QUICK_FLAGS
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = (workdir / "transformer" / "metrics.jsonl").read_text().splitlines()
    metrics = [values for values in map(json.loads, lines) if "gradient_norm" in values]
    assert [values["step"] for values in metrics] == [1, 2]
    assert all(math.isfinite(x) for values in metrics for x in values.values())
    mesh = (workdir / "transformer" / "checkpoints" / "2" / "state" / "_sharding").read_text()
    assert '"shape": [1, 8, 1], "axis_names": ["data", "fsdp"' in mesh.replace("\\", "")
    written = json.loads((workdir / "config.json").read_text())
    assert written["optimizer"]["moment_dtype"] == "bfloat16"
    assert (workdir / "bundle" / "transformer").exists()


def test_every_preset_and_nothing_else_is_shipped():
    configs, models, runs = (
        {path.stem for path in recipes.folder(kind).glob(pattern)}
        for kind, pattern in (("configs", "*.py"), ("gin", "models/*.gin"), ("gin", "runs/*.gin"))
    )
    assert (configs, models, runs) == ({*PRESETS, *RUNS}, set(PRESETS), set(RUNS))


def test_every_shipped_recipe_says_result_cost_and_command():
    for kind, flag in (("gin", "--gin_file"), ("configs", "--config")):
        for path in recipes.folder(kind).rglob("*" + recipes.SUFFIX[kind]):
            if path.name != "experiment.gin":
                text = path.read_text(encoding="utf-8")
                run = "python -m t5x.train" if path.parent.name == "t5x" else "cm3leon"
                wanted = ("Expect:", "Cost:", f"Run:  {run} ", flag)
                assert [word for word in wanted if word not in text] == [], path


def test_experiment_gin_wires_every_part(tmp_path):
    def parts(kind: type, path: tuple[str, ...] = ()):
        for name, hint in typing.get_type_hints(kind).items():
            if dataclasses.is_dataclass(hint):
                yield (*path, name), hint
                yield from parts(hint, (*path, name))

    places = list(parts(Experiment))
    lines = ""
    for place, kind in places:  # a binding of the default value is legal only where wired
        entry = dataclasses.fields(kind)[0].name
        value = getattr(functools.reduce(getattr, place, Experiment()), entry)
        lines += f"{'/'.join(place)}/config.{kind.__name__}.{entry} = {value!r}\n"
    assert len(places) >= 8
    assert read(tmp_path, WIRED + lines) == Experiment()


def test_names_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recipes.from_gin(["models/7b"]) == preset("7b")
    Path("own.gin").write_text(WIRED + 'include "models/7b.gin"\ntrain/config.Train.steps = 5\n')
    assert recipes.from_gin(["own.gin"]) == replace(preset("7b"), {"train.steps": 5})


def test_later_files_win_and_macros_work(tmp_path):
    (tmp_path / "more.gin").write_text(HEAD + "ROW = 2048\ndata/config.Data.row_length = %ROW\n")
    experiment = recipes.from_gin(["models/350m.gin", str(tmp_path / "more.gin")])
    assert experiment == replace(preset("350m"), {"data.row_length": 2048})


def test_an_unscoped_binding_holds_wherever_the_part_is_used(tmp_path):
    assert read(tmp_path, WIRED + "config.Train.keep = 7\n").train.keep == 7


def test_gin_keeps_no_bindings(tmp_path):
    readers = list(gin.config._FILE_READERS)
    recipes.from_gin(["models/7b.gin"])
    with pytest.raises(ValueError, match="stps"):
        read(tmp_path, WIRED + "train/config.Train.stps = 3\n")
    assert gin.config_str() == ""
    assert readers == gin.config._FILE_READERS


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "train/config.Train.stps = 3",
            "mine.gin:4: Train has no field 'stps'; did you mean steps?",
        ),
        ("train/config.Trian.steps = 3", "mine.gin:4: config has no 'Trian'; did you mean Train?"),
        ("trian/config.Train.steps = 3", "trian/config.Train: not a place in the experiment; did"),
        ("train/config.Train.steps = 'x'", "mine.gin: train.steps='x': must be of type int"),
        ("train/config.Train.steps = -3", "mine.gin: train.steps=-3: must be > 0"),
        ("data/config.Data.source = emoji", "mine.gin:4: cannot read emoji; strings need quotes"),
        ("train/config.Train.steps = %N", "mine.gin: Train.steps = %N: not defined"),
        ("train/config.Train.steps == 3", "mine.gin:4: "),
        ("other.steps = 3", "mine.gin:4: 'other' was not provided by an import statement"),
        ('include "models/8b.gin"', "mine.gin:4: recipe 'models/8b.gin': no such file"),
        ("import nothing", "mine.gin:4: No module named 'nothing'"),
    ],
)
def test_gin_errors_are_one_line_with_place_and_nearest(tmp_path, line, message):
    with pytest.raises(ValueError, match=r"mine\.gin") as caught:
        read(tmp_path, WIRED + line + "\n")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_gin_without_the_root_is_told_what_to_include(tmp_path):
    with pytest.raises(ValueError, match=r"no root config\.Experiment .* add: include"):
        read(tmp_path, HEAD + "train/config.Train.steps = 3\n")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("base.train.stps = 3", 'Did you mean "steps" instead of "stps"?'),
        ("base.train.steps = -3", "train.steps=-3: must be > 0"),
        ("base.train.steps = 'x'", "Could not override field 'steps'"),
        ("del get_config", "defines no get_config()"),
    ],
)
def test_config_errors_are_one_line_with_file_and_field(tmp_path, line, message):
    tiny = recipes.find("tiny", "configs").read_text()
    mine = f"{tiny}\nbase = get_config()\nget_config = lambda: base\n{line}\n"
    (tmp_path / "mine.py").write_text(mine)
    with pytest.raises(ValueError, match=r"mine\.py: ") as caught:
        recipes.from_config(str(tmp_path / "mine.py"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("350m", "gin", "did you mean models/350m.gin?"),
        ("models/351m.gin", "gin", "did you mean models/350m.gin"),
        ("tny", "configs", "did you mean tiny.py"),
        ("zzzzz", "configs", "known: 350m.py, 760m.py, 7b.py"),
    ],
)
def test_unknown_recipes_name_the_nearest(name, kind, message):
    with pytest.raises(ValueError, match=f"recipe '{name}'") as caught:
        recipes.find(name, kind)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("train.steps", "1_000", 1000),
        ("optimizer.learning_rate", "1e-3", 1e-3),
        ("optimizer.learning_rate", "1", 1.0),
        ("data.source", "emoji", "emoji"),
        ("data.source", '"emoji"', "emoji"),
        ("data.source", "2024", "2024"),
        ("model.remat", "none", "none"),
        ("model.norm_affine", "true", True),
        ("model.norm_affine", "True", True),
        ("image_tokenizer.multipliers", "1,1,1,2", (1, 1, 1, 2)),
        ("image_tokenizer.multipliers", "[1, 1, 1, 2]", (1, 1, 1, 2)),
        ("image_tokenizer.attention", "32", (32,)),
        ("mesh.tensor", "-1", -1),
    ],
)
def test_command_lines_read_values_by_the_type_of_the_field(field, text, value):
    wanted = replace(preset("350m"), {"mesh.fsdp": 1, field: value})
    for recipe, front in (("--gin_file=models/350m.gin", "gin"), ("--config=350m", "config")):
        arguments = [recipe, f"--{front}.mesh.fsdp=1", f"--{front}.{field}", text]
        assert recipes.from_arguments(arguments) == (wanted, [])


def test_other_arguments_remain_in_order():
    arguments = ["train", "--config", "tiny", "--workdir", "x", "--config.train.steps=3", "y=1"]
    experiment, rest = recipes.from_arguments(arguments)
    assert experiment == replace(preset("tiny"), {"train.steps": 3})
    assert rest == ["train", "--workdir", "x", "y=1"]
    assert recipes.from_arguments(["sample", "--n", "2"]) == (None, ["sample", "--n", "2"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config"], "--config: expects a value"),
        (["--config", "tiny", "--config", "7b"], "an experiment has one recipe"),
        (["--config", "tiny", "--gin_file", "models/7b.gin"], "an experiment has one recipe"),
        (["--config.train.steps=3"], "--config.train.steps: needs a recipe, --config NAME"),
        (["--config=tiny", "--gin.train.steps=3"], "--gin.train.steps: needs a recipe, --gin_file"),
        (["--config=tiny", "--config.train.stps=3"], "did you mean train.steps?"),
        (["--gin_file=models/7b.gin", "--gin.trian.steps=3"], "did you mean train?"),
        (["--config=tiny", "--config.train.steps=ten"], "train.steps='ten': must be of type int"),
        (["--config=tiny", "--config.image_tokenizer=3"], "must be a mapping of fields"),
        (["--config=sft:8b"], "sft.py: preset='8b': use one of tiny,"),
        (["--config=tiny:8b"], "tiny.py: get_config() takes 0 positional arguments but 1 was"),
    ],
)
def test_bad_command_lines_say_what_to_write(arguments, message):
    with pytest.raises(ValueError, match=r"\w") as caught:
        recipes.from_arguments(arguments)
    assert message in str(caught.value)
