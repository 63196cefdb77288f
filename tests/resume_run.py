"""A short training run in a process of its own, to be killed and started again by test_resume."""

import sys
from functools import partial
from pathlib import Path

import jax
from conftest import SMALL, make_examples, make_text

from cm3leon_jax import config
from cm3leon_jax.checkpoint import save_network
from cm3leon_jax.data.loader import token_batches
from cm3leon_jax.sharding import make_mesh
from cm3leon_jax.training.loop import fit
from cm3leon_jax.training.optimizer import make_optimizer, make_schedule
from cm3leon_jax.training.step import init_state, train_step


def main(folder: Path, steps: int) -> None:
    c = config.replace(config.Experiment(), SMALL | {"train.steps": steps})
    mesh = make_mesh(config.Mesh(fsdp=1), jax.devices()[:1])
    optimizer = make_optimizer(c.optimizer, c.train.steps)
    init = lambda key: init_state(c, optimizer, key)  # noqa: E731
    step = partial(train_step, c, optimizer, make_schedule(c.optimizer, c.train.steps))
    batches = token_batches([(make_examples(c), 1.0)], make_text(), c)
    state = fit(step, init, batches, c.train, mesh, folder)
    save_network(folder / "final", {"state": state, "position": jax.numpy.array(batches.position)})


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
