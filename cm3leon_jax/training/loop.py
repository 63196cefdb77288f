"""The training loop, for every network: (state, batch) -> (state, metrics), `steps` times.

The order matters. A checkpoint describes the state after step n and the data position after the
batch of step n; only then is the next batch drawn. Nothing in the loop waits for the device but
the log, one window late, and a save, while it copies.
"""

from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from cm3leon_jax import config
from cm3leon_jax.checkpoint import Checkpoints
from cm3leon_jax.sharding import batch_sharding, check_batch, shardings
from cm3leon_jax.training.metrics import Log
from cm3leon_jax.training.step import compile_step, init_sharded


class Batches(Protocol):
    """An endless, seekable stream of host batches."""

    def __iter__(self) -> Generator[dict[str, np.ndarray]]: ...

    @property
    def position(self) -> Any:
        """Where the next batch starts, as JSON."""

    def seek(self, position: Any) -> None:
        """Goes to a position."""


# (state, step) -> (numbers, pictures) for the log
Show = Callable[[Any, int], tuple[Mapping[str, float], Mapping[str, np.ndarray]]]


def fit(
    step: Callable[[Any, Any], tuple[Any, dict[str, jax.Array]]],
    init: Callable[[jax.Array], Any],
    batches: Batches,
    train: config.Train,
    mesh: jax.sharding.Mesh,
    folder: Path,
    unit: str = "tokens",
    show: Show | None = None,
    begin: Callable[[], Any] | None = None,
) -> Any:
    """Trains up to `train.steps` updates, resuming from the newest checkpoint in `folder`.

    init: a fresh state from a key; runs only where there is no checkpoint. begin: reads the state
    of a new run, on the mesh, in place of `init`.
    unit: the metric that counts work, for the progress line. show: called every
    `train.sample_every` steps. Returns the final state, which is also the last checkpoint.
    """
    check_batch(train.batch, train.accumulate, mesh)
    checkpoints = Checkpoints(folder / "checkpoints", train.keep)
    key = jax.random.key(train.seed)
    form = jax.eval_shape(init, key)
    restored = checkpoints.restore(form, shardings(form, mesh))
    if restored is None:
        start, state = 0, begin() if begin else init_sharded(init, key, mesh)
    else:
        start, state = restored.step, restored.state
        batches.seek(restored.position)
    del restored

    log = Log(folder, start, train.steps, train.log_every, unit)
    place = batch_sharding(mesh)
    stream = iter(batches)
    try:
        with jax.set_mesh(mesh):
            run = compile_step(step, state, mesh)
            for done in range(start + 1, train.steps + 1):
                batch = jax.device_put(next(stream), place)
                with jax.transfer_guard("disallow"):
                    state, metrics = run(state, batch)
                log.add(done, metrics)

                last = done == train.steps
                if done % train.save_every == 0 or last:
                    log.flush()
                    checkpoints.save(done, state, batches.position)
                if show is not None and (done % train.sample_every == 0 or last):
                    numbers, pictures = show(state, done)
                    log.scalars(done, numbers)
                    for name, picture in pictures.items():
                        log.picture(done, name, picture)
    finally:
        stream.close()
        log.close()
        checkpoints.close()
    return state
