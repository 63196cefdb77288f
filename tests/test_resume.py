"""kill -9 and resume equals an uninterrupted run bit for bit: model, moments, data and losses."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from orbax.checkpoint import v1 as ocp

from cm3leon_jax.training.metrics import read_metrics

HERE = Path(__file__).parent
STEPS = 400


def start(folder: Path) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])}
    command = [sys.executable, str(HERE / "resume_run.py"), str(folder), str(STEPS)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def finish(run: subprocess.Popen) -> None:
    _, errors = run.communicate(timeout=300)
    assert run.returncode == 0, errors[-3000:]


def kill_after_a_save(folder: Path, step: int) -> None:
    """Kills as soon as a checkpoint of `step` or later is there, or being written."""
    run = start(folder)
    deadline = time.time() + 200
    while time.time() < deadline and run.poll() is None:
        names = [p.name for p in (folder / "checkpoints").glob("*")]
        if any(int(name.split(".")[0]) >= step for name in names if name[0].isdigit()):
            break
        time.sleep(0.005)
    assert run.poll() is None, "the run ended before it could be killed"
    run.send_signal(signal.SIGKILL)
    run.communicate()


def flat(tree, path=""):
    if isinstance(tree, dict):
        return {k: v for name in tree for k, v in flat(tree[name], f"{path}/{name}").items()}
    return {path: np.asarray(tree)}


def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(whole))
    kill_after_a_save(killed, step=40)
    kill_after_a_save(killed, step=140)
    finish(start(killed))

    ours, theirs = (flat(ocp.load(folder / "final")) for folder in (killed, whole))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)
    ours_curves, their_curves = read_metrics(killed), read_metrics(whole)
    assert ours_curves["loss"] == their_curves["loss"]
    assert len(their_curves["loss"]) == STEPS
