"""The command line: errors are one line, help has examples, a fast quickstart goes on as it began.

What a quickstart leaves is looked at where one is run: test_docs.py.
"""

import os
import re
from pathlib import Path

import pytest

from cm3leon_jax import config, presets, stages
from cm3leon_jax.checkpoint import write_experiment
from cm3leon_jax.cli import main
from cm3leon_jax.quickstart import stage_commands


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--workdir", "{new}"], "is new: name its experiment"),
        (["train", "--workdir", "{new}", "--config", "tinny"], "did you mean"),
        (["train", "--workdir", "{new}", "--config", "tiny"], "run: cm3leon prepare"),
        (["retrieve", "--workdir", "{new}", "--config", "tiny"], "run: cm3leon prepare"),
        (["prepare", "--workdir", "{new}", "--config", "tiny"], "run: cm3leon tokenizer image"),
        (["train", "--workdir", "{new}", "--coordinator", "localhost:1"], "give all three"),
        (["inspect", "documents"], "--workdir: name the folder of a run whose"),
        (["sample", "{new}", "a ring", "--config", "tiny"], "leave --config out"),
        (["sample", "{new}", "a ring", "--out", "{new}/no/x.png"], "a folder that exists"),
        (["quickstart", "--workdir", "{new}", "--data", "{new}"], "no such folder"),
        (["sample", "{new}", "a ring"], "has no config.json"),
        (["inspect", "config", "--config", "tiny", "--config.train.step=3"], "train.steps"),
        (["inspect", "config", "--workdir", "{new}"], "has no config.json"),
        (["evaluate", "{new}", "--split", "all", "--style", "long"], "--split, --style: used"),
        (["evaluate", "{new}", "--resampling", "torch-fidelity"], "--resampling: used"),
        (["evaluate", "{new}", "--distributed"], "--distributed: used with --suite only"),
        (
            ["plan", "--preset", "tiny", "--topology", "v5e:1x1", "--search", "--rows", "2"],
            "--rows, --search: give one of them",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys, arguments, message):
    given = [argument.replace("{new}", str(tmp_path / "new")) for argument in arguments]
    assert main(given) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


def test_inspect_objective_prints_the_shares(capsys):
    arguments = ["inspect", "objective", "--config", "350m", "--documents", "4", "--rounds", "200"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "no mask" in printed
    assert "image masked" in printed


def test_inspect_prints_the_config_of_a_work_directory(tmp_path, capsys):
    c = config.replace(presets.preset("tiny"), {"train.steps": 77})
    write_experiment(tmp_path, c)
    assert main(["inspect", "config", "--workdir", str(tmp_path)]) == 0
    assert "train.steps = 77\n" in capsys.readouterr().out


@pytest.mark.parametrize("most", [0, 2])
def test_the_commands_of_a_report_are_those_of_its_stages(most):
    c = config.replace(presets.preset("tiny"), {"retrieval.most": most})
    listed = "\n".join(stage_commands(c, Path("run")))
    for stage in ("train --stage retriever", "retrieve"):
        assert (f"cm3leon {stage} --workdir run-again/pretraining" in listed) == bool(most)


@pytest.mark.parametrize("source", presets.SHARES)
def test_the_mixture_has_the_shares_of_its_source(source):
    data, shares = presets.for_source(source).data, presets.SHARES[source]
    assert shares.keys() <= {"plain", *data.tasks}  # none is of a task that is not there
    mixture = stages.mixture_of_tasks(data, Path("tasks"), Path("run"))
    told = {name: int(share) for name, share in re.findall(r"(\w+)=(\d+)", mixture)}
    assert told == {"run": shares["plain"]} | {task: shares.get(task, 1) for task in data.tasks}


def test_help_has_an_example_for_every_verb(capsys):
    making = ("quickstart", "tokenizer", "prepare", "retrieve", "train")
    for verb in (*making, "sample", "evaluate", "inspect"):
        with pytest.raises(SystemExit) as stop:
            main([verb, "--help"])
        assert stop.value.code == 0
        assert f"example: cm3leon {verb}" in capsys.readouterr().out.replace(os.linesep, " ")


def test_fast_is_a_third_and_goes_on_as_it_began(tmp_path, monkeypatch):
    ran = []

    def begin(experiment, workdir):
        ran.append(experiment)
        stages.open_workdir(experiment, workdir / "pretraining")
        stages.open_workdir(presets.tuned(experiment), workdir)
        return {"held_out": {}}

    monkeypatch.setattr("cm3leon_jax.quickstart.quickstart", begin)
    for options in (["--fast"], []):
        assert main(["quickstart", "--workdir", str(tmp_path / "run"), *options]) == 0
    assert main(["quickstart", "--workdir", str(tmp_path / "whole")]) == 0
    assert ran[0] == ran[1] == presets.fast(presets.preset("tiny"))
    assert ran[2] == presets.preset("tiny")
    assert 0 <= 3 * ran[0].train.steps - ran[2].train.steps < 3
