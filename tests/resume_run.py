"""A short training run in a process of its own, alone or one of several, to be ended and resumed.

`python resume_run.py '{"folder": ...}'`; `RUN` has every option. Used by test_resume and by
benchmarks/chaos.py, which start it, end it in one way or another, and start it again.
"""

import json
import os
import sys
import time
import zlib
from functools import partial
from pathlib import Path

import jax
import numpy as np
from conftest import SMALL, make_examples, make_text

from cm3leon_jax import config, processes
from cm3leon_jax.checkpoint import save_network
from cm3leon_jax.data.loader import Stream, token_batches
from cm3leon_jax.sharding import make_mesh
from cm3leon_jax.training.batches import host_rows, whole_position
from cm3leon_jax.training.loop import fit
from cm3leon_jax.training.optimizer import make_optimizer, make_schedule
from cm3leon_jax.training.step import init_state, train_step

RUN = {
    "folder": "",
    "config": {},
    "devices": 1,  # of this process
    "port": "",  # of process 0; without one this process joins no others
    "processes": 1,
    "process": 0,
    "slow": 0.0,  # seconds that each batch takes
    "hang_at": 0,  # batch that never comes
}


class Troubled:
    """A stream that is slow, or stops, and writes down what each row of each step has read."""

    def __init__(self, stream: Stream, run: dict):
        self._stream, self._run = stream, run
        self.rows, self.of = stream.rows, stream.of
        self.position = stream.position

    def seek(self, position):
        self._stream.seek(position)
        self.position = self._stream.position

    def __iter__(self):
        with (Path(self._run["folder"]) / f"read-{self._run['process']}.txt").open("a") as lines:
            for number, batch in enumerate(self._stream, 1):
                time.sleep(self._run["slow"] if number != self._run["hang_at"] else 1e6)
                for row, start, ids in zip(self.rows, self.position, batch["tokens"]):
                    lines.write(f"\n{row} {start} {zlib.crc32(ids.tobytes()):08x}\n")
                lines.flush()
                self.position = self._stream.position
                yield batch


def main(run: dict) -> None:
    jax.config.update("jax_num_cpu_devices", run["devices"])
    if run["port"]:
        processes.join(f"localhost:{run['port']}", run["processes"], run["process"])
    folder = Path(run["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    c = config.replace(config.Experiment(), SMALL | run["config"])
    mesh = make_mesh(config.Mesh())
    optimizer = make_optimizer(c.optimizer, c.train.steps)
    init = lambda key: init_state(c, optimizer, key)  # noqa: E731
    step = partial(train_step, c, optimizer, make_schedule(c.optimizer, c.train.steps))
    rows = host_rows(mesh, c.train.batch)
    stream = token_batches([(make_examples(c), 1.0)], make_text(), c, rows)
    batches = Troubled(stream, run)
    try:
        state = fit(step, init, batches, c.train, mesh, folder)
    except processes.Preempted as end:
        print(end, file=sys.stderr)
        sys.exit(143)
    position = whole_position(batches)
    save_network(folder / "network", state.model)
    state = processes.for_first(state)
    if processes.is_first():
        paths = jax.tree_util.tree_leaves_with_path(state)
        arrays = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in paths}
        np.savez(folder / "final.npz", position=position, **arrays)


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    main(RUN | json.loads(sys.argv[1]))
