"""Where arrays live: the mesh, and two tables from logical axes to mesh axes.

Parameters name their logical axes once, where they are made (`nnx.Param(value, axes=(...))`);
optimizer moments inherit the names. STORE says how arrays rest, COMPUTE how activations work:
weights rest split over `fsdp` and are gathered layer by layer, activations are split by batch.

Logical axes: batch seq embed heads kv_heads head mlp vocab layers codes features pieces.
Mesh axes: data fsdp tensor.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cm3leon_jax import config

Rules = Mapping[str, str | tuple[str, ...] | None]

STORE: Rules = {
    "batch": ("data", "fsdp"),
    "embed": "fsdp",
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
}
COMPUTE: Rules = {
    "batch": ("data", "fsdp"),
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
}


def make_mesh(sizes: config.Mesh, devices: list[jax.Device] | None = None) -> jax.sharding.Mesh:
    """Returns the mesh data x fsdp x tensor over `devices` (all of this program by default).

    Without a -1 among the sizes the first devices are taken, as many as the product says.
    """
    devices = jax.devices() if devices is None else devices
    shape = [sizes.data, sizes.fsdp, sizes.tensor]
    given = int(np.prod([n for n in shape if n != -1]))
    if given > len(devices) or (-1 in shape and len(devices) % given):
        raise ValueError(
            f"mesh (data, fsdp, tensor)={tuple(shape)}: the product must fit the number of devices,"
            f" {len(devices)}; use smaller numbers, or -1 for one axis that takes what is left"
        )
    if -1 not in shape:
        devices = devices[:given]
    shape = [len(devices) // given if n == -1 else n for n in shape]
    axes = ("data", "fsdp", "tensor")
    return jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * 3, devices=devices)


def spec(axes: tuple[str | None, ...], rules: Rules) -> PartitionSpec:
    """Translates logical axes to mesh axes; axes without a rule are not split."""
    return PartitionSpec(*(rules.get(axis) if axis else None for axis in axes))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins an activation to its COMPUTE layout; does nothing outside `jax.set_mesh`."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes, COMPUTE))


def shardings(tree: Any, mesh: jax.sharding.Mesh, rules: Rules = STORE) -> Any:
    """Returns the NamedSharding of every leaf of a (possibly abstract) tree of nnx variables.

    Leaves outside a variable, and variables without `axes`, are replicated.
    """

    def of_variable(path: Any, leaf: Any) -> Any:
        axes = leaf.get_metadata().get("axes") if isinstance(leaf, nnx.Variable) else None
        partition = spec(axes, rules) if axes else PartitionSpec()
        for array in jax.tree.leaves(leaf):
            for size, split in zip(array.shape, partition):
                _check_divides(jax.tree_util.keystr(path), size, split, mesh)
        return jax.tree.map(lambda _: NamedSharding(mesh, partition), leaf)

    is_variable = lambda leaf: isinstance(leaf, nnx.Variable)  # noqa: E731
    return jax.tree_util.tree_map_with_path(of_variable, tree, is_leaf=is_variable)


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The sharding of every batch array: its first axis over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(STORE["batch"]))


def check_batch(batch: int, accumulate: int, mesh: jax.sharding.Mesh) -> None:
    """Raises unless each accumulation step of a global batch divides over the mesh."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch // accumulate % ways:
        fits = max(1, batch // accumulate // ways) * ways * accumulate
        raise ValueError(
            f"train.batch={batch}: batch / accumulate = {batch // accumulate} must be a multiple"
            f" of data x fsdp = {ways}; use for example {fits} or {fits + ways * accumulate}"
        )


def _check_divides(
    name: str, size: int, split: str | tuple[str, ...] | None, mesh: jax.sharding.Mesh
) -> None:
    names = (split,) if isinstance(split, str) else split or ()
    ways = int(np.prod([mesh.shape[axis] for axis in names]))
    if size % ways:
        fits = [n for n in range(1, ways + 1) if ways % n == 0 and size % n == 0]
        raise ValueError(
            f"{name}: an axis of size {size} does not divide over mesh axis {split} = {ways};"
            f" of its divisors {fits} would fit"
        )
