"""Runs that end early and go on: killed, terminated, hung; on one host or several, bit for bit."""

import json
import signal

import jax
import numpy as np
import pytest
from conftest import QUICK_FLAGS
from flax import nnx

from benchmarks.chaos import chaos, compare, finish, last_step, newest, rows_read, start, wait_until
from cm3leon_jax import config
from cm3leon_jax.checkpoint import load_network
from cm3leon_jax.models.transformer import Transformer
from cm3leon_jax.sharding import make_mesh, shardings
from cm3leon_jax.training.metrics import read_metrics

LENGTH = {"train.steps": 40, "train.save_every": 5}
SAME = {"steps of the curve": 0, "rows read": 0, "final arrays": 0}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", QUICK_FLAGS)  # a device's program is the same on any host
        yield tmp_path_factory.mktemp("runs")  # with the compiled steps of all of them


@pytest.fixture(scope="module")
def whole(place):
    """The uninterrupted run, on one host."""
    finish(start(place / "whole", 1, config=LENGTH))
    return place / "whole"


def test_several_hosts_compute_what_one_computes_and_one_of_them_writes(place, whole):
    folder = place / "four"
    finish(start(folder, 4, config=LENGTH))
    assert compare(folder, whole) == SAME
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 41))
    assert len(list((folder / "tensorboard").iterdir())) == 1


def test_a_network_that_four_hosts_have_saved_is_whole(place, small):
    if not (folder := place / "four").exists():
        finish(start(folder, 4, config=LENGTH))
    mesh = make_mesh(config.Mesh(fsdp=1), jax.devices()[:1])
    form = jax.eval_shape(lambda: Transformer(small.model, rngs=nnx.Rngs(0)))
    network = load_network(folder / "network", form, shardings(form, mesh))
    final = np.load(folder / "final.npz")
    for path, leaf in jax.tree_util.tree_leaves_with_path(network):
        np.testing.assert_array_equal(leaf, final[f".model{jax.tree_util.keystr(path)}"])


def test_killed_on_1_2_4_and_2_hosts_and_finished_on_1_equals_uninterrupted(place, whole):
    folder = place / "killed"
    kills = chaos(folder, 4, LENGTH)
    assert [kill.hosts for kill in kills] == [1, 2, 4, 2]
    assert any(kill.in_save for kill in kills)
    assert any(kill.step > kill.saved for kill in kills)
    finish(start(folder, 1, config=LENGTH))
    assert compare(folder, whole) == SAME
    share = np.array(read_metrics(folder)["goodput"])[:, 1]
    assert ((share >= 0) & (share < 1)).all()
    seconds = np.array(read_metrics(folder)["program_seconds"])[:, 1]
    assert (np.diff(seconds) > 0).all()  # of all five programs, added up


def test_sigterm_to_one_of_two_hosts_stops_both_at_one_step_and_resumes(place, whole):
    folder = place / "preempted"
    runs = start(folder, 2, config=LENGTH, slow=0.05)
    wait_until(lambda: last_step(folder) >= 7, runs)
    runs[1].send_signal(signal.SIGTERM)
    printed = finish(runs, 143)
    step = newest(folder)
    assert f"SIGTERM: saved at step {step} of 40" in printed
    assert step in (last_step(folder), last_step(folder) + 1)  # the log is a window late
    # And what is damaged meanwhile both hosts pass over, for the same one before.
    (folder / "checkpoints" / str(step) / "state" / "manifest.ocdbt").unlink()
    printed = finish(start(folder, 2, config=LENGTH))
    assert printed.count(f"checkpoint of step {step} is damaged (state/manifest.ocdbt is") == 1
    assert f"moved to damaged-{step}, going on from step" in printed
    assert compare(folder, whole) == SAME


def test_sigterm_to_one_host_saves_the_window_of_the_log_with_the_state(place):
    length = LENGTH | {"train.save_every": 20, "train.log_every": 20}
    wanted, folder = place / "alone", place / "terminated"
    finish(start(wanted, 1, config=length, port=""))
    runs = start(folder, 1, config=length, port="", slow=0.3)
    read = folder / "read-0.txt"
    wait_until(lambda: read.exists() and len(rows_read(read)) >= 10 * 8, runs)
    runs[0].send_signal(signal.SIGTERM)
    assert "SIGTERM: saved at step" in finish(runs, 143)
    assert 10 <= newest(folder) < 20
    finish(start(folder, 1, config=length, port=""))
    assert compare(folder, wanted) == SAME


def test_a_hanging_step_ends_the_process_with_its_stacks(place):
    config = LENGTH | {"train.hang_seconds": 12}  # a step that compiles is shorter
    runs = start(place / "hung", 1, config=config, port="", hang_at=4)
    printed = finish(runs, 1)
    assert "Timeout (0:00:12)!" in printed
    assert "in __iter__" in printed  # of the stream that hangs
    assert "in fit" in printed
    assert last_step(place / "hung") >= 1
