"""Where arrays live: the mesh, and two tables from logical axes to mesh axes.

Parameters name their logical axes once, where they are made (`nnx.Param(value, axes=(...))`);
optimizer moments inherit the names. STORE says how arrays rest, COMPUTE how activations work:
weights rest split over `fsdp` and are gathered layer by layer, activations are split by batch.

Logical axes: batch seq embed heads kv_heads head mlp vocab layers codes features pieces.
Mesh axes: data fsdp tensor.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cm3leon_jax import config

AXES = ("data", "fsdp", "tensor")
TYPES = (AxisType.Auto,) * 3

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
COMPUTE_T5X: Rules = {  # COMPUTE where T5X has set its mesh, data x model
    "batch": ("data",),
    "vocab": "model",
    "heads": "model",
    "kv_heads": "model",
    "mlp": "model",
}


def make_mesh(sizes: config.Mesh, devices: list[jax.Device] | None = None) -> jax.sharding.Mesh:
    """Returns the mesh data x fsdp x tensor over `devices` (all of this program by default).

    Without a -1 among the sizes the first devices are taken, as many as the product says. Devices
    of several TPU slices are joined by `data`: only gradients cross the network between slices.
    """
    devices = jax.devices() if devices is None else devices
    shape = [sizes.data, sizes.fsdp, sizes.tensor]
    given = math.prod(n for n in shape if n != -1)
    if given > len(devices) or (-1 in shape and len(devices) % given):
        raise ValueError(
            f"mesh (data, fsdp, tensor)={tuple(shape)}: there are {len(devices)} devices; use"
            f" numbers whose product is one of {_divisors(len(devices))}, and -1 for one axis that"
            " takes what is left"
        )
    if -1 not in shape:
        devices = devices[:given]
    data, fsdp, tensor = (len(devices) // given if n == -1 else n for n in shape)
    is_tpu = devices[0].platform == "tpu"  # each host of GPUs has a slice_index of its own
    slices = len({getattr(device, "slice_index", None) for device in devices}) if is_tpu else 1
    if data % slices:
        raise ValueError(
            f"mesh.data={data}: {slices} slices are joined by the axis data, so it must be a"
            f" multiple of {slices}; use for example mesh.data={slices} and mesh.fsdp=-1"
        )
    splits = devices[0].device_kind == "TPU v5 lite"  # physical axes, as jax.make_mesh does
    inner = (data // slices, fsdp, tensor)
    if slices == 1:
        placed = mesh_utils.create_device_mesh(inner, devices, allow_split_physical_axes=splits)
    else:
        placed = mesh_utils.create_hybrid_device_mesh(
            inner, (slices, 1, 1), devices, allow_split_physical_axes=splits
        )
    return jax.sharding.Mesh(placed, AXES, axis_types=TYPES)


def spec(axes: tuple[str | None, ...], rules: Rules) -> PartitionSpec:
    """Translates logical axes to mesh axes; axes without a rule are not split."""
    return PartitionSpec(*(rules.get(axis) if axis else None for axis in axes))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins an activation to its COMPUTE layout; does nothing outside `jax.set_mesh`."""
    rules = compute_rules()
    return x if rules is None else jax.lax.with_sharding_constraint(x, spec(axes, rules))


def compute_rules() -> Rules | None:
    """COMPUTE, in the axes of the mesh that is set; None where none is."""
    names = jax.sharding.get_abstract_mesh().axis_names
    if not names:
        return None
    return COMPUTE_T5X if "model" in names else COMPUTE


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


def ways(mesh: jax.sharding.Mesh) -> int:
    """Parts that a batch is split into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_batch(batch: int, accumulate: int, mesh: jax.sharding.Mesh) -> None:
    """Raises unless each accumulation step of a global batch divides over the mesh."""
    if batch // accumulate % (parts := ways(mesh)):
        fits = max(1, batch // accumulate // parts) * parts * accumulate
        raise ValueError(
            f"train.batch={batch}: batch / accumulate = {batch // accumulate} must be a multiple"
            f" of data x fsdp = {parts}; use for example {fits} or {fits + parts * accumulate}"
        )


def _check_divides(
    name: str, size: int, split: str | tuple[str, ...] | None, mesh: jax.sharding.Mesh
) -> None:
    names = (split,) if isinstance(split, str) else split or ()
    ways = math.prod(mesh.shape[axis] for axis in names)
    if size % ways:
        fits = _divisors(math.gcd(ways, size))
        raise ValueError(
            f"{name}: an axis of size {size} does not divide over mesh axis {split} = {ways};"
            f" of its divisors {fits} would fit"
        )


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
