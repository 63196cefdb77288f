"""TPU generations: what a chip can do, how a slice of them is wired, what XLA is told for it.

Figures are Google's published ones: bf16 peak, memory and its bandwidth. `devices_of` describes a
slice to the compiler on any machine that has libtpu (`pip install 'jax[tpu]'`), with no TPU there.
"""

import os
import re
from dataclasses import dataclass, field
from typing import Any

import jax

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One generation. JAX sees one device a chip."""

    kind: str  # as JAX names its devices
    flops: float  # bf16 FLOP/s
    memory: int  # bytes
    bandwidth: float  # bytes/s of that memory
    dimensions: int  # of the torus that a slice is cut from
    utilization: float  # of the FLOPs, in published training runs at 8 to 30B (MaxText)
    xla: dict[str, str] = field(default_factory=dict)  # compiler options of a training step


# Weight gathers and gradient reductions run beside the products of neighbouring layers, and those
# of several slices beside the backward pass. From public recipes of MaxText; no TPU was measured.
OVERLAP = {
    "xla_enable_async_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
    "xla_tpu_overlap_compute_collective_tc": "true",
    "xla_tpu_enable_data_parallel_all_reduce_opt": "true",
    "xla_tpu_data_parallel_opt_different_sized_ops": "true",
}
MORE_VMEM = {"xla_tpu_scoped_vmem_limit_kib": "98304"}  # of 128 MiB, for larger fusions

CHIPS = {
    "v4": Chip("TPU v4", 275e12, 32 * GIB, 1.23e12, 3, 0.55, OVERLAP),
    "v5e": Chip("TPU v5 lite", 197e12, 16 * GIB, 0.82e12, 2, 0.55, OVERLAP),
    "v5p": Chip("TPU v5", 459e12, 95 * GIB, 2.77e12, 3, 0.55, OVERLAP),
    "v6e": Chip("TPU v6 lite", 918e12, 32 * GIB, 1.64e12, 2, 0.42, OVERLAP | MORE_VMEM),
}


# Dense bf16 FLOP/s of NVIDIA's SXM boards, by the start of the device's name.
GPUS = {"NVIDIA A100": 312e12, "NVIDIA H100": 989e12, "NVIDIA H200": 989e12}


def chip_of(device_kind: str) -> Chip | None:
    """The generation of a device; None for what is no TPU of CHIPS."""
    return next((chip for chip in CHIPS.values() if chip.kind == device_kind), None)


def peak_flops(mesh: jax.sharding.Mesh) -> float | None:
    """bf16 FLOP/s of all devices of a mesh; None where no figure is known."""
    kind = mesh.devices.flat[0].device_kind
    chip = chip_of(kind)
    gpu = next((flops for name, flops in GPUS.items() if kind.startswith(name)), None)
    flops = chip.flops if chip else gpu
    return flops and mesh.size * flops


def devices_of(topology: str) -> list[jax.Device]:
    """The devices of a slice such as "v5e:16x16", or of several: "2 x v5p:4x4x8".

    They can be compiled for and nothing else. Raises ValueError for an unknown generation or form.
    """
    match = re.fullmatch(r"(?:(\d+) ?x ?)?(\w+):(\d+(?:x\d+)*)", topology)
    chip = CHIPS.get(match[2]) if match else None
    if match is None or chip is None:
        raise ValueError(
            f"topology={topology!r}: give generation and shape, such as v5e:16x16, v5p:4x4x8 or"
            f" '2 x v5p:4x4x8'; generations are {', '.join(CHIPS)}"
        )
    shape = tuple(int(n) for n in match[3].split("x"))
    if len(shape) != chip.dimensions:
        example = "x".join("4" * chip.dimensions)
        raise ValueError(
            f"topology={topology!r}: {match[2]} slices have {chip.dimensions} dimensions; give for"
            f" example {match[2]}:{example}"
        )
    description = _import_topologies().get_topology_desc(
        topology_name=f"{match[2]}:{match[3]}",
        platform="tpu",
        num_slices=int(match[1] or 1),
        **_wiring(chip, shape),
    )
    return list(description.devices)


def _wiring(chip: Chip, shape: tuple[int, ...]) -> dict[str, Any]:
    """What the compiler must be told of a slice: without a torus it gathers by all-reduce."""
    if chip.dimensions == 3:
        host = tuple(min(n, most) for n, most in zip(shape, (2, 2, 1)))
        is_torus = all(n % 4 == 0 for n in shape)
        # Without "megacore" each of a chip's two cores would be a device.
        wiring = {"chip_config_name": "megacore", "wrap": (is_torus,) * 3}
        return wiring | {"chips_per_host_bounds": host}
    if shape == (16, 16):  # a whole pod, the only 2D slice whose ends meet
        return {"wrap": (True, True, False)}
    return {"chips_per_host_bounds": (1, 1, 1)} if shape == (1, 1) else {}


def _import_topologies() -> Any:
    """JAX's topologies, once libtpu is known to be there and told not to look for a TPU."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # else it asks Google's metadata server
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # else a lock admits one process
    try:
        import libtpu  # noqa: F401
    except ModuleNotFoundError:
        raise ValueError("compiling for a TPU needs libtpu: pip install 'jax[tpu]'") from None
    from jax.experimental import topologies

    return topologies
