"""The whole road in miniature, through the command line: stages, bundle, report, resume, errors."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from cm3leon_jax import presets, stages
from cm3leon_jax.cli import main
from cm3leon_jax.training.metrics import read_metrics

BRIEF = {
    "data.count": 400,
    "image_tokenizer.channels": 16,
    "image_tokenizer.groups": 4,
    "image_tokenizer.latent": 16,
    "image_tokenizer.train.steps": 20,
    "image_tokenizer.train.sample_every": 20,
    "image_tokenizer.train.save_every": 20,
    "retriever.layers": 1,
    "retriever.text_layers": 1,
    "retriever.train.steps": 20,
    "retriever.train.batch": 16,
    "retriever.train.sample_every": 20,
    "retriever.train.save_every": 20,
    "model.layers": 1,
    "model.width": 32,
    "model.mlp": 32,
    "train.steps": 20,
    "train.batch": 4,
    "train.sample_every": 20,
    "train.save_every": 20,
}


def brief(name: str, **more) -> list[str]:
    overrides = BRIEF | more
    return ["--config", name, *(f"--config.{field}={value}" for field, value in overrides.items())]


SCENES = brief("tiny", **{"data.tasks": ("edit", "question"), "data.held_out": 0.2})


@pytest.fixture(scope="module", autouse=True)
def few():
    """No more held-out requests are answered than the report shows."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("SCORED", "ASKED"):
            patch.setattr(f"cm3leon_jax.quickstart.{name}", 24)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "scenes"
    assert main(["quickstart", "--workdir", str(workdir), *SCENES]) == 0
    return workdir


def test_quickstart_leaves_bundle_results_and_report(run):
    results = json.loads((run / "results.json").read_text())
    scores = results["held_out"]
    assert results["documents"]["train"] + results["documents"]["held_out"] == 400
    assert 0 <= scores["images"]["exact"]["mean"] <= scores["images"]["exact"]["high"] <= 1
    assert {"reconstructions", "images", "captions", "reconstruction_psnr"} <= set(scores)
    bundle = {path.name for path in (run / "bundle").iterdir()}
    networks = {"transformer", "image_tokenizer", "clip"}
    assert bundle == {"card.md", "config.json", "text.model", "memory", *networks}
    assert set(results["held_out_by_documents"]) == {"0", "1", "2"}
    gain = results["retrieval_gain"]
    assert gain["low"] <= gain["gain"] <= gain["high"]
    page = (run / "report.html").read_text()
    assert page.count("data:image/png;base64,") > 40
    assert "polyline" in page
    assert 'src="http' not in page
    assert f"cm3leon train --workdir {run}-again/pretraining" in page
    assert f"--workdir {run}-again/tasks/edit" in page
    assert "--config.train.steps=20" in page
    assert list((run / "transformer" / "tensorboard").iterdir())


def test_the_bundle_is_the_one_that_was_tuned_on_tasks(run):
    results = json.loads((run / "results.json").read_text())
    assert set(results["tasks"]) == {"composition", "captions", "questions", "edits"}
    assert all(0 <= score["mean"] <= 1 <= score["count"] for score in results["tasks"].values())
    assert (run / "tasks" / "edit" / "documents" / "skipped.txt").exists()
    assert not (run / "tasks" / "question").exists()  # told of the run's own documents
    first, second = (
        read_metrics(run / name) for name in ("pretraining/transformer", "transformer")
    )
    assert first["loss"][-1][0] == 20
    assert second["loss"][-1][0] == 20 * (1 + 3 + 2) * 23 // 170  # plain, edits, questions
    assert second["loss"][0][1] < first["loss"][0][1]  # it goes on from there
    memory = {path.name for path in (run / "bundle" / "memory").iterdir()}
    assert memory == {path.name for path in (run / "pretraining/bundle/memory").iterdir()}
    page = (run / "report.html").read_text()
    assert "Edits: asked, answered, true" in page


def test_done_stages_are_not_done_again(run):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if "bundle" in path.parts}
    assert main(["quickstart", "--workdir", str(run), *SCENES]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_another_config_in_the_same_folder_is_refused(run, capsys):
    arguments = ["quickstart", "--workdir", str(run), *SCENES, "--config.train.seed=5"]
    assert main(arguments) == 2
    assert "train.seed=0, now it is 5" in capsys.readouterr().err
    arguments = ["quickstart", "--workdir", str(run), *SCENES, "--config.decode.temperature=0.5"]
    assert main(arguments) == 0  # what no result was made from may change


def test_sample_and_evaluate_open_the_bundle(run, tmp_path, capsys):
    out = tmp_path / "grid.png"
    bundle = str(run / "bundle")
    assert main(["sample", bundle, "a small red ring top left on white", "--n", "3",
                 "--out", str(out)]) == 0  # fmt: skip
    assert Image.open(out).size[0] > 3 * 32
    capsys.readouterr()
    images = tmp_path / "images"
    assert main(["evaluate", bundle, "--count", "4", "--images", str(images)]) == 0
    for part in ("real", "reconstructed", "drawn"):
        assert len(list((images / part).glob("*.png"))) == 4
    scores = json.loads(capsys.readouterr().out)
    assert scores["count"] == 4
    assert main(["sample", bundle, "a ring", "--n", "0"]) == 2
    assert "n=0: use at least 1" in capsys.readouterr().err


def write_folder(folder, count=60):
    folder.mkdir()
    rng = np.random.default_rng(0)
    lines = []
    for i in range(count):
        colour = rng.integers(0, 256, 3).astype(np.uint8)
        Image.fromarray(np.full((40, 48, 3), colour)).save(folder / f"{i}.png")
        lines.append(
            json.dumps(
                {"id": f"{i}", "image": f"{i}.png", "text": f"colour {i % 7}", "license": "CC0-1.0"}
            )
        )
    return lines


def test_a_folder_with_bad_pictures_is_counted_listed_and_trained_on(tmp_path, capsys):
    folder, workdir = tmp_path / "mine", tmp_path / "run"
    lines = write_folder(folder)
    (folder / "3.png").write_bytes(b"")
    (folder / "5.png").write_bytes((folder / "5.png").read_bytes()[:60])
    (folder / "data.jsonl").write_text("\n".join([*lines, "{broken"]) + "\n")
    options = ["--data", str(folder), "--workdir", str(workdir)]
    recipe = brief("tiny_folder", **{"data.held_out": 0.2, "decode.text_tokens": 8})
    assert main(["quickstart", *options, *recipe]) == 2
    assert "3 of 61 records are bad" in capsys.readouterr().err
    assert main(["prepare", "--check", *options, *recipe]) == 2
    printed = capsys.readouterr().out
    assert "data.jsonl:4: " in printed
    assert "data.jsonl:61: broken JSON" in printed
    assert main(["quickstart", *options, *recipe, "--max_bad_fraction", "0.1"]) == 0
    listed = (workdir / "documents" / "skipped.txt").read_text()
    assert "data.jsonl:4: " in listed
    assert "data.jsonl:6: " in listed
    assert "data.jsonl:61: broken JSON" in listed
    assert "nearest" in json.loads((workdir / "results.json").read_text())["held_out"]
    assert str(tmp_path) not in (workdir / "bundle" / "config.json").read_text()
    assert "| CC0-1.0 |" in (workdir / "bundle" / "card.md").read_text()


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
