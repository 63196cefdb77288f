"""Between a stream of host batches and the devices: whose rows are whose, and where data stands."""

from collections.abc import Generator, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from numpy.typing import NDArray

from cm3leon_jax import processes
from cm3leon_jax.data.loader import join_positions
from cm3leon_jax.sharding import batch_sharding, check_batch


class Batches(Protocol):
    """An endless, seekable stream of host batches.

    It is made of streams of integer positions, of which this host reads `rows` of `of`.
    """

    rows: Sequence[int]
    of: int

    def __iter__(self) -> Generator[dict[str, np.ndarray]]: ...

    @property
    def position(self) -> list[int]:
        """Where the next batch starts, for each of `rows`."""

    def seek(self, position: Sequence[int]) -> None:
        """Goes to a position of the whole batch."""


def host_rows(mesh: jax.sharding.Mesh, batch: int) -> list[int]:
    """The rows of the global batch that devices of this process hold, in order.

    Hosts that share a row, split over `tensor`, all read it. Raises ValueError where the mesh
    leaves out devices of several processes, or the batch does not divide over it.
    """
    if processes.count() > 1 and mesh.size < jax.device_count():
        raise ValueError(
            f"mesh {dict(mesh.shape)} has {mesh.size} of the {jax.device_count()} devices of"
            f" {processes.count()} processes; it must have all, with -1 for one of its axes"
        )
    check_batch(batch, 1, mesh)
    shards = batch_sharding(mesh).addressable_devices_indices_map((batch,)).values()
    return sorted({row for index in shards if index for row in range(*index[0].indices(batch))})


def place(
    host: dict[str, NDArray[Any]], rows: Sequence[int], batch: int, mesh: jax.sharding.Mesh
) -> dict[str, jax.Array]:
    """Puts this host's `rows` of a global batch of `batch` rows on the devices.

    Raises ValueError where the stream gives another number of rows.
    """
    at, local = batch_sharding(mesh), {row: i for i, row in enumerate(rows)}

    def of_array(name: str, array: NDArray[Any]) -> jax.Array:
        if len(array) != len(rows):
            raise ValueError(
                f"batch {name!r} has {len(array)} rows, this host's share of train.batch={batch}"
                f" is {len(rows)}; make the stream with rows=host_rows(mesh, batch)"
            )

        def shard(index: tuple[slice, ...] | None) -> NDArray[Any]:
            assert index is not None  # only asked for what is held here
            first, last, _ = index[0].indices(batch)
            return array[local[first] : local[last - 1] + 1]

        return jax.make_array_from_callback((batch, *array.shape[1:]), at, shard)

    return {name: of_array(name, array) for name, array in host.items()}


def whole_position(batches: Batches) -> list[int]:
    """The position of the whole batch, joined from all hosts; all must call it together."""
    mine = np.full(batches.of, -1, np.int64)
    mine[list(batches.rows)] = batches.position
    hosts = [(np.flatnonzero(host >= 0).tolist(), host) for host in processes.gather(mine)]
    return join_positions((rows, host[rows].tolist()) for rows, host in hosts)
