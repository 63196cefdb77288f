"""Compiles the join of 340M documents for TPU chips that are not there; prints bytes a chip.

`search_aot.py v5e:4x4 256`: on that topology, each chip with its share of a pod of 256.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cm3leon_jax.retrieval.mesh_search import SCORED, search_program, split

DOCUMENTS, WIDTH, CANDIDATES = 340_000_000, 512, 64
# Without these a v5p slice is not the torus of one device a chip that it is.
SLICES = {
    "v5p:4x4x4": {
        "chips_per_host_bounds": (2, 2, 1),
        "chip_config_name": "megacore",
        "wrap": (True, True, True),
    }
}


def main(topology: str, pod: int) -> None:
    described = topologies.get_topology_desc(
        topology_name=topology, platform="tpu", **SLICES.get(topology, {})
    )
    devices = np.array(described.devices).reshape(1, -1, 1)
    mesh = Mesh(devices, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    by_rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    batch, most = SCORED["accelerator"]
    share, block = split(DOCUMENTS, pod, most)
    rows = share * mesh.size
    form = lambda n: jax.ShapeDtypeStruct((n, WIDTH), jnp.bfloat16, sharding=by_rows)  # noqa: E731
    sizes = {}
    for recall in (1.0, 0.95):
        program = search_program(mesh, rows, block, CANDIDATES, recall)
        memory = program.lower(form(rows), form(batch)).compile().memory_analysis()
        sizes[recall] = {
            "arguments": memory.argument_size_in_bytes,
            "outputs": memory.output_size_in_bytes,
            "temporary": memory.temp_size_in_bytes,
        }
    print(json.dumps(sizes))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
