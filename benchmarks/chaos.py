"""kill -9 at random moments, during saves too, and another number of hosts after each kill.

The run is the one of tests/resume_run.py: 4 simulated devices as 1 x 4, 2 x 2 or 4 x 1 processes on
one file system. What must come out is what an uninterrupted run gives, bit for bit.
"""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cm3leon_jax.training.metrics import read_metrics

ROOT = Path(__file__).parents[1]
DEVICES = 4
HOSTS = (1, 2, 4, 2)  # and 1 again
KILLS = 20
STEPS = 200
SAVE_EVERY = 5
LONGEST = 300  # seconds that the start of a run may take


class Kill(NamedTuple):
    """One interrupted program."""

    hosts: int
    step: int  # the last one in its log
    saved: int  # the newest finished checkpoint
    in_save: bool  # left a half-written one


def measure() -> str:
    """A Markdown table."""
    with tempfile.TemporaryDirectory() as place:
        whole, killed = Path(place) / "whole", Path(place) / "killed"
        length = {"train.steps": STEPS, "train.save_every": SAVE_EVERY}
        finish(start(whole, 1, config=length))
        began = time.perf_counter()
        kills = chaos(killed, KILLS, length)
        finish(start(killed, HOSTS[KILLS % len(HOSTS)], config=length))
        seconds = time.perf_counter() - began
        differences = compare(killed, whole)
        curve = read_metrics(killed)
    lines = ["| kill | hosts | at step | newest checkpoint | half-written save |"]
    lines.append("|---:|---:|---:|---:|---|")
    for number, kill in enumerate(kills, 1):
        torn = "yes" if kill.in_save else ""
        lines.append(f"| {number} | {kill.hosts} | {kill.step} | {kill.saved} | {torn} |")
    redone = sum(kill.step - kill.saved for kill in kills)
    lines.append("")
    lines.append(
        f"{len(kills)} kills, {sum(kill.in_save for kill in kills)} of them during a save, in"
        f" {seconds:.0f} s; {redone} steps done again, final goodput"
        f" {curve['goodput'][-1][1]:.2f}. Against the uninterrupted run of {STEPS} steps: "
        + ", ".join(f"{name} differ in {count}" for name, count in differences.items())
        + "."
    )
    return "\n".join(lines)


def chaos(folder: Path, kills: int, config: dict[str, Any], seed: int = 0) -> list[Kill]:
    """Starts the run `kills` times, each with the next number of HOSTS, and kills it.

    Every second one dies as soon as a save is under way, the others up to half a second after a
    random step.
    """
    draw, done = random.Random(seed), []
    for number in range(kills):
        hosts = HOSTS[number % len(HOSTS)]
        saved = newest(folder)
        runs = start(folder, hosts, config=config, slow=0.02)
        target = saved + draw.randint(1, 2 * SAVE_EVERY)
        wait_until(lambda target=target: last_step(folder) >= target, runs)
        if number % 2:
            wait_until(lambda: unfinished(folder), runs)
        else:
            time.sleep(draw.uniform(0, 0.5))
        draw.shuffle(runs)
        for run in runs:
            run.send_signal(signal.SIGKILL)
        for run in runs:
            run.communicate()
            assert run.returncode == -signal.SIGKILL, "the run ended before it was killed"
        done.append(Kill(hosts, last_step(folder), newest(folder), unfinished(folder)))
    return done


def start(folder: Path, hosts: int, **options: Any) -> list[subprocess.Popen[str]]:
    """The processes of one program; `options` are those of tests/resume_run.py."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled"),  # a start costs imports only
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    form = {"folder": str(folder), "devices": DEVICES // hosts, "port": port, "processes": hosts}
    return [
        subprocess.Popen(
            [sys.executable, str(ROOT / "tests/resume_run.py"), json.dumps(form | one)],
            env=environment,
            stdout=subprocess.DEVNULL,  # gloo's
            stderr=subprocess.PIPE,
            text=True,
        )
        for one in ({"process": process} | options for process in range(hosts))
    ]


def finish(runs: Sequence[subprocess.Popen[str]], code: int = 0) -> str:
    """Waits for all processes; returns what they printed to stderr."""
    errors = [run.communicate(timeout=2 * LONGEST)[1] for run in runs]
    for run, text in zip(runs, errors):
        assert run.returncode == code, f"exit code {run.returncode}: {text[-3000:]}"
    return "\n".join(errors)


def compare(one: Path, other: Path) -> dict[str, int]:
    """How many steps, rows read and arrays of the final state are not equal bit for bit."""
    curves = [read_metrics(folder) for folder in (one, other)]
    names = sorted(set(curves[0]) - {"goodput", "program_seconds", "save_seconds"})
    steps = [list(zip(*(curve[name] for name in names), strict=True)) for curve in curves]
    reads = [set().union(*map(rows_read, folder.glob("read-*.txt"))) for folder in (one, other)]
    finals = [dict(np.load(folder / "final.npz")) for folder in (one, other)]
    assert finals[0].keys() == finals[1].keys()
    assert steps[0]
    assert reads[0]
    arrays = [name for name in finals[0] if not np.array_equal(finals[0][name], finals[1][name])]
    return {
        "steps of the curve": len(set(steps[0]) ^ set(steps[1])),
        "rows read": len(reads[0] ^ reads[1]),
        "final arrays": len(arrays),
    }


def rows_read(path: Path) -> set[str]:
    """Row, position and digest of each row of each step, without lines that a kill has cut."""
    lines = path.read_text().splitlines()
    return {line for line in lines if re.fullmatch(r"\d+ \d+ [0-9a-f]{8}", line)}


def wait_until(holds: Any, runs: Sequence[subprocess.Popen[str]]) -> None:
    """Polls; raises if a process ends, or after LONGEST seconds."""
    deadline = time.monotonic() + LONGEST
    while not holds():
        for run in runs:
            assert run.poll() is None, f"ended too early: {run.communicate()[1][-3000:]}"
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.005)


def last_step(folder: Path) -> int:
    """The last step in the log; 0 before the first."""
    if not (folder / "metrics.jsonl").exists():
        return 0
    return max((step for step, _ in read_metrics(folder).get("loss", [])), default=0)


def newest(folder: Path) -> int:
    """The newest finished checkpoint; 0 before the first."""
    names = (path.name for path in (folder / "checkpoints").glob("*"))
    return max((int(name) for name in names if name.isdigit()), default=0)


def unfinished(folder: Path) -> bool:
    """Whether a checkpoint is half-written."""
    return any((folder / "checkpoints").glob("*.orbax-checkpoint-tmp"))
