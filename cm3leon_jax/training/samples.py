"""The network as a run's `show` samples from it, on one host or several."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax

from cm3leon_jax import config, processes
from cm3leon_jax.sharding import make_mesh

SAMPLED_BYTES = 4 * 2**30  # larger networks are not gathered from several hosts to draw samples


@contextmanager
def for_samples(network: Any) -> Iterator[Any | None]:
    """The network itself; on several hosts a copy for the first one alone.

    None on the others, and everywhere where that copy would be too large.
    """
    if processes.count() == 1:
        yield network
    elif sum(x.nbytes for x in jax.tree.leaves(network)) > SAMPLED_BYTES:
        yield None
    else:
        copy = processes.for_first(network)
        with jax.set_mesh(own_mesh()):
            yield copy


def own_mesh() -> jax.sharding.Mesh:
    """Of the first device of this process."""
    return make_mesh(config.Mesh(data=1, fsdp=1, tensor=1), jax.local_devices()[:1])
