"""`cm3leon sample` on an untrained bundle, by one process and by two that share the work."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import QUICK_FLAGS, SMALL
from flax import nnx
from PIL import Image
from prepared import write_workdir

import cm3leon_jax as cm3
from cm3leon_jax import bundle, config
from cm3leon_jax.cli import main
from cm3leon_jax.models.transformer import Transformer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with bundle/, a picture, and job.jsonl of seven requests, one of them bad."""
    c = config.replace(config.Experiment(), SMALL)
    place = tmp_path_factory.mktemp("sample")
    workdir = write_workdir(place / "run", c)
    bundle.write_bundle(c, workdir, Transformer(c.model, rngs=nnx.Rngs(0)))
    (workdir / "bundle").rename(place / "bundle")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(place / "x.png")
    lines = [
        {"id": "a", "prompt": "a bad cab", "n": 2, "seed": 3},
        {"id": "b", "prompt": "a dad", "n": 2, "seed": 3},
        {"id": "c", "task": "caption", "image": "x.png"},
        {"id": "d", "task": "caption", "image": "none.png"},
        {"id": "e", "task": "caption", "image": "x.png", "seed": 1},
        {"id": "f", "prompt": "ace", "n": 2, "seed": 3},
        {"id": "g", "prompt": "decade", "guidance": 1},
    ]
    (place / "job.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return place


def answers(out: Path) -> dict[str, dict]:
    lines = [line for path in out.glob("results*") for line in path.read_text().splitlines()]
    return {json.loads(line)["id"]: json.loads(line) for line in lines}


def pictures(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("*.png")}


@pytest.fixture(scope="module")
def alone(folder) -> Path:
    """The answers of one process."""
    out = folder / "alone"
    job = ["--requests", str(folder / "job.jsonl"), "--out", str(out)]
    assert main(["sample", str(folder / "bundle"), *job]) == 0
    return out


def test_a_job_gives_what_the_generator_gives_alone(folder, alone):
    generator = cm3.load(folder / "bundle")
    for id, prompt in (("a", "a bad cab"), ("f", "ace")):
        for number, image in enumerate(generator.images(prompt, 2, seed=3)):
            drawn = Image.open(alone / f"{id}-{number}.png")
            np.testing.assert_array_equal(np.asarray(drawn), np.asarray(image))
    found = answers(alone)
    assert set(found) == set("abcefg")
    assert found["e"]["text"] == generator.caption(folder / "x.png", seed=1)


def test_one_command_gives_the_pictures_of_a_job(folder, alone, capsys):
    out = folder / "grid.png"
    given = ["a dad", "--n", "2", "--seed", "3", "--out", str(out)]
    assert main(["sample", str(folder / "bundle"), *given]) == 0
    page, single = Image.open(out), Image.open(alone / "b-1.png")
    np.testing.assert_array_equal(np.asarray(page)[:, -8:], np.asarray(single))
    assert page.text["bundle"] == single.text["bundle"]
    capsys.readouterr()
    given = ["--task", "caption", "--image", str(folder / "x.png")]
    assert main(["sample", str(folder / "bundle"), *given]) == 0
    assert capsys.readouterr().out == answers(alone)["c"]["text"] + "\n"


def test_two_processes_share_a_job_and_give_the_same(folder, alone):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    out = folder / "together"
    places = ["--coordinator", f"localhost:{port}", "--processes", "2", "--process"]
    program = "import sys; from cm3leon_jax.cli import main; sys.exit(main())"
    job = ["--requests", str(folder / "job.jsonl"), "--out", str(out)]
    paths = {"PYTHONPATH": str(Path(__file__).parents[1]), "JAX_PLATFORMS": "cpu"}
    paths["XLA_FLAGS"] = QUICK_FLAGS  # as the one process, whose bits theirs are compared with
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", program, "sample", folder / "bundle", *job, *places, str(i)],
            env=os.environ | paths,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    for run, wanted in zip(runs, ("6 requests answered, 0 before, 1 bad", "")):
        printed, errors = run.communicate(timeout=200)
        assert run.returncode == 0, errors[-3000:]
        assert wanted in printed
    assert pictures(out) == pictures(alone)
    assert answers(out) == answers(alone)
    ids = [set(answers_of(out / f"results-0000{i}-of-00002.jsonl")) for i in range(2)]
    assert ids == [set("aceg"), set("bf")]
    assert (out / "skipped-00000-of-00002.txt").read_text() == ""
    assert "job.jsonl:4: image='none.png'" in (out / "skipped-00001-of-00002.txt").read_text()


def answers_of(path: Path) -> list[str]:
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]
