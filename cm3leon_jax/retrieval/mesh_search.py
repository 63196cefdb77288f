"""Exact maximum-inner-product search over a mesh: every device holds rows, all answer together.

Each device scans its rows in blocks and keeps its best `count`; then the devices exchange so that
each merges the answers to a share of the queries. No more than [queries block] scores exist at
once on a device. docs/retrieval.md has the arithmetic of 340M documents on a pod.

Axes: `Q` queries, `R` rows, `E` vector, `K` the best.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from math import ceil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from numpy.typing import DTypeLike, NDArray

from cm3leon_jax.retrieval.index import Rows, check_queries

LANES = 128  # of a TPU register: a block is a multiple of it
READ = 65_536  # rows converted at once on the host
# Queries and rows scored at once: 16 MiB of float32 stay in a processor's cache, 512 MiB in HBM.
SCORED = {"cpu": (1024, 4096), "accelerator": (4096, 32_768)}

Best = tuple[jax.Array, jax.Array]
"""Scores float32 [Q K], best first, and their rows int32 [Q K]."""


class MeshSearch:
    """The vectors [N E] at rest on a mesh, split by rows over all of its axes.

    `recall` below 1 allows `jax.lax.approx_max_k`, which on a TPU is faster and misses that share.
    """

    def __init__(
        self,
        vectors: Rows,
        mesh: jax.sharding.Mesh,
        dtype: DTypeLike = np.float32,
        recall: float = 1.0,
    ) -> None:
        self.count = len(vectors)
        if not 0 < self.count < 2**31:
            raise ValueError(f"vectors: {self.count} rows; give at least 1 and less than 2**31")
        if not 0 < recall <= 1:
            raise ValueError(f"recall={recall} is a share: use > 0 and <= 1")
        self.recall, self.mesh = recall, mesh
        is_cpu = mesh.devices.flat[0].platform == "cpu"
        self.batch, block = SCORED["cpu" if is_cpu else "accelerator"]
        per_device, self.block = split(self.count, mesh.size, block)
        self.by_rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        shape = (per_device * mesh.size, vectors.shape[1])
        fill = partial(_fill, vectors, np.dtype(dtype))
        self.vectors = jax.make_array_from_callback(
            shape, self.by_rows, lambda at: fill(*_edges(at, shape[0]))
        )

    @property
    def form(self) -> str:
        """What it finds: "exact", or the recall that it aims at."""
        return "exact" if self.recall == 1 else f"recall {self.recall}"

    def search(
        self, queries: NDArray[Any], count: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """See `index.Search`; equal scores by lower row.

        With several processes all call this together, each with as many queries of its own, and
        each gets the answers to its own.
        """
        check_queries(queries, self.vectors.shape[1], count)
        processes = len({device.process_index for device in self.mesh.devices.flat})
        # Powers of two up to a batch: one program serves a single prompt, another one the join.
        batch = self.mesh.size
        while batch < min(len(queries) * processes, self.batch):
            batch *= 2
        program = search_program(self.mesh, self.count, self.block, count, self.recall)
        own = batch // processes
        found = []
        for start in range(0, len(queries), own):
            some = np.zeros((own, queries.shape[1]), self.vectors.dtype)
            part = queries[start : start + own]
            some[: len(part)] = part
            found.append(program(self.vectors, self._spread(some, batch)))
        scores = np.concatenate([_collect(s) for s, _ in found])[: len(queries)]
        rows = np.concatenate([_collect(r) for _, r in found])[: len(queries)]
        return scores, rows.astype(np.int64)

    def _spread(self, own: NDArray[Any], batch: int) -> jax.Array:
        """The queries of all processes [batch E], by rows; a device gets some of its process's."""
        shape, share = (batch, own.shape[1]), batch // self.mesh.size
        places = self.by_rows.addressable_devices_indices_map(shape).values()
        starts = sorted(_edges(at, batch)[0] for at in places)

        def read(at: tuple[slice, ...] | None) -> NDArray[Any]:
            first = starts.index(_edges(at, batch)[0]) * share
            return own[first : first + share]

        return jax.make_array_from_callback(shape, self.by_rows, read)


def split(rows: int, devices: int, block: int) -> tuple[int, int]:
    """Rows per device, padded, and rows per block: whole blocks, little padding."""
    blocks = ceil(rows / (devices * block))
    block = ceil(rows / (devices * blocks * LANES)) * LANES
    return blocks * block, block


@lru_cache
def search_program(
    mesh: jax.sharding.Mesh, rows: int, block: int, count: int, recall: float = 1.0
) -> Callable[[jax.Array, jax.Array], Best]:
    """The jitted search of vectors [R E] for queries [Q E], all arrays by rows over the mesh.

    Only the first `rows` of R are real; R divides into blocks on every device, Q over the devices.
    """
    axes = mesh.axis_names

    def search_share(vectors: jax.Array, queries: jax.Array) -> Best:
        queries = jax.lax.all_gather(queries, axes, tiled=True)
        first = jax.lax.axis_index(axes) * len(vectors)

        def scan_block(best: Best, start: jax.Array) -> tuple[Best, None]:
            some = jax.lax.dynamic_slice_in_dim(vectors, start, block)
            scores = jnp.einsum(
                "QE,RE->QR",
                queries,
                some,
                precision=jax.lax.Precision.HIGHEST,  # a TPU would round float32 to bfloat16
                preferred_element_type=jnp.float32,
            )
            numbers = first + start + jnp.arange(block)
            scores = jnp.where(numbers < rows, scores, -jnp.inf)
            values, columns = take_best(scores, min(count, block), recall)
            return merge(best, (values, first + start + columns), count), None

        nothing = (
            jnp.full((len(queries), count), -jnp.inf),
            jnp.full((len(queries), count), -1, jnp.int32),
        )
        starts = jnp.arange(0, len(vectors), block)
        best, _ = jax.lax.scan(scan_block, jax.lax.pcast(nothing, axes, to="varying"), starts)
        # All queries' best of own rows [Q K] -> own queries' best of all rows [Q/devices devices*K]
        values, found = (
            jax.lax.all_to_all(x, axes, split_axis=0, concat_axis=1, tiled=True) for x in best
        )
        values, at = jax.lax.top_k(values, count)
        found = jnp.take_along_axis(found, at, axis=1)
        return values, jnp.where(values == -jnp.inf, -1, found)

    by_rows = PartitionSpec(axes)
    return jax.jit(
        jax.shard_map(search_share, mesh=mesh, in_specs=by_rows, out_specs=(by_rows, by_rows))
    )


def take_best(scores: jax.Array, count: int, recall: float) -> Best:
    """The `count` greatest of each row of scores [Q R] and their columns, ties by lower column.

    Compiled for a TPU, top_k is a kernel of its own behind the product; approx_max_k is fused into
    it, and the scores never reach the chip's memory. Sorting only the best groups of columns took
    1.6 GB more there and was no faster on a CPU.
    """
    if recall < 1:
        values, columns = jax.lax.approx_max_k(scores, count, recall_target=recall)
    else:
        values, columns = jax.lax.top_k(scores, count)
    return values, columns


def merge(best: Best, more: Best, count: int) -> Best:
    """The `count` greatest of both; where scores are equal those of `best`, the lower rows."""
    values, rows = (jnp.concatenate(pair, axis=1) for pair in zip(best, more))
    values, at = jax.lax.top_k(values, count)
    return values, jnp.take_along_axis(rows, at, axis=1)


def _fill(vectors: Rows, dtype: np.dtype, start: int, stop: int) -> NDArray[Any]:
    """Rows from `start` to `stop`, zeros behind the last one there is; converted in blocks."""
    filled = np.zeros((stop - start, vectors.shape[1]), dtype)
    for at in range(start, min(stop, len(vectors)), READ):
        some = vectors[at : min(at + READ, stop, len(vectors))]
        filled[at - start : at - start + len(some)] = some
    return filled


def _edges(at: tuple[slice, ...] | None, size: int) -> tuple[int, int]:
    """First row and the row behind the last one of a device's share of `size` rows."""
    assert at is not None  # no device is without a share
    start, stop, _ = at[0].indices(size)
    return start, stop


def _collect(array: jax.Array) -> NDArray[Any]:
    """The rows of an array that are on this process's devices, in order."""
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])
