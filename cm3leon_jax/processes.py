"""The processes of one program: how they join, wait for one another and exchange small things.

On a pod slice or a cluster every host runs the same command. Each process has its own devices and
all of them run the same steps together; what only one may do (write logs, rename a result) the
first one does.
"""

import os
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from numpy.typing import NDArray


class Preempted(Exception):
    """The run was asked to end, has saved its state and goes on when it is started again."""


def join(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Makes this process one of several; must come before anything that starts a device.

    Cloud TPU, GKE, Slurm and Open MPI tell each process its place; elsewhere name the address
    HOST:PORT of the first process, how many there are, and which of them this one is, from 0.
    Raises ValueError where neither is so.
    """
    given = (coordinator, processes, process)
    if None in given and given != (None, None, None):
        raise ValueError(
            f"--coordinator, --processes, --process = {given}: give all three, or none of them"
            " where the cluster tells each process its place"
        )
    if processes is not None and process is not None and not 0 <= process < processes:
        raise ValueError(f"--process {process}: must be >= 0 and < --processes {processes}")
    if coordinator is not None and not coordinator.rpartition(":")[2].isdecimal():
        raise ValueError(f"--coordinator {coordinator}: use HOST:PORT of the first process")
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except ValueError as error:
        raise ValueError(
            f"--distributed: no Cloud TPU, GKE, Slurm or Open MPI was found ({error});"
            " give --coordinator HOST:PORT --processes N --process I"
        ) from error
    if is_first():
        kind = jax.devices()[0].device_kind
        print(
            f"{jax.process_count()} processes with {jax.device_count()} devices ({kind}),"
            f" {jax.local_device_count()} of them here",
            file=sys.stderr,
        )


def keep_compiled(folder: Path) -> None:
    """Lets a program that starts again read what it has compiled before, unless JAX has a place.

    Not on CPU: there compiling takes seconds, and what it gives is of one machine.
    """
    if jax.default_backend() != "cpu" and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(folder))


def count() -> int:
    """How many processes there are; starts no device unless `join` was called."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this process is the one that writes what only one may write."""
    return count() == 1 or jax.process_index() == 0


def wait_for_all(moment: str) -> None:
    """Returns when every process has come to this moment."""
    if count() > 1:
        multihost_utils.sync_global_devices(moment)


def gather(array: NDArray[Any]) -> NDArray[Any]:
    """[...] of each process -> [processes ...] on all of them, bit for bit."""
    if count() == 1:
        return array[None]
    raw = np.frombuffer(array.tobytes(), np.uint8)  # JAX would cut 64 bits to 32
    together = np.ascontiguousarray(multihost_utils.process_allgather(raw))
    return together.view(array.dtype).reshape(-1, *array.shape)


def for_first(tree: Any) -> Any | None:
    """A tree of arrays as the first process can use it alone; None on the other processes.

    All must call it. Every process holds the whole tree in host memory for a moment.
    """
    if count() == 1:
        return tree
    whole = multihost_utils.process_allgather(tree, tiled=True)
    return whole if is_first() else None
