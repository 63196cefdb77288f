"""The training loop, for every network: (state, batch) -> (state, metrics), `steps` times.

The order matters. A checkpoint describes the state after step n and the data position after the
batch of step n; only then is the next batch drawn. Nothing in the loop waits for the newest step
but a save, while it copies, and a sample. All hosts of a program run it together.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cm3leon_jax import config, processes
from cm3leon_jax.checkpoint import Checkpoints
from cm3leon_jax.chips import peak_flops
from cm3leon_jax.sharding import check_batch, shardings
from cm3leon_jax.training.batches import Batches, host_rows, place, whole_position
from cm3leon_jax.training.metrics import Log, seconds_so_far
from cm3leon_jax.training.step import compile_step, init_sharded
from cm3leon_jax.training.survival import Goodput, HangLimit, Termination

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
    flops: float = 0.0,
) -> Any:
    """Trains up to `train.steps` updates, resuming from the newest readable checkpoint in `folder`.

    init: a fresh state from a key; begin: reads the state that a new run starts with, in place of
    `init`; both run only where there is no checkpoint. batches: this host's rows of the global
    batch. unit: the metric that counts work, for the progress line; flops: those of one unit, for
    its MFU. show: called every `train.sample_every` steps, on every host; the first one's result is
    logged. Returns the final state, which is also the last checkpoint. Raises `Preempted` behind a
    save after SIGTERM, and FloatingPointError before one of a state that is not finite.
    """
    check_batch(train.batch, train.accumulate, mesh)
    rows = host_rows(mesh, train.batch)
    lived = seconds_so_far(folder)
    checkpoints = Checkpoints(folder / "checkpoints", train.keep)
    key = jax.random.key(train.seed)
    form = jax.eval_shape(init, key)
    goodput, window = Goodput(lived=lived), []
    restored = checkpoints.restore(form, shardings(form, mesh))
    if restored is None:
        start, state = 0, begin() if begin else init_sharded(init, key, mesh)
    else:
        start, state = restored.step, restored.state
        batches.seek(restored.position)
        goodput.resume(restored.progress["trained"], restored.progress["lived"])
        window = restored.progress["window"]
    del restored

    peak = peak_flops(mesh) if flops else None
    units = peak / flops if peak else None  # per second, at the devices' peak
    log = Log(folder, start, train.steps, train.log_every, unit, goodput, window, units)
    with (
        closing(checkpoints),
        closing(log),
        closing(iter(batches)) as stream,
        Termination() as termination,
        HangLimit(train.hang_seconds) as hang,
        jax.set_mesh(mesh),
    ):
        run = compile_step(step, state, mesh)
        for done in range(start + 1, train.steps + 1):
            batch = place(next(stream), rows, train.batch, mesh)
            with jax.transfer_guard("disallow"):
                state, metrics = run(state, batch)
            log.add(done, metrics)
            hang.restart()

            last = done == train.steps
            ends = termination.is_due(done) and not last
            if done % train.save_every == 0 or last or ends:
                window = log.settle(done)
                with hang.paused(), goodput.paused():
                    began = time.perf_counter()
                    progress = goodput.so_far() | {"window": window}
                    checkpoints.save(done, state, whole_position(batches), progress)
                    log.scalars(done, {"save_seconds": time.perf_counter() - began})
            if ends:
                raise processes.Preempted(f"SIGTERM: saved at step {done} of {train.steps}")
            if show is not None and (done % train.sample_every == 0 or last):
                jax.block_until_ready(metrics)
                with hang.paused(), goodput.paused():
                    numbers, pictures = show(state, done)
                    log.scalars(done, numbers)
                    for name, picture in pictures.items():
                        log.picture(done, name, picture)
                    processes.wait_for_all("sample")
    return state
