"""Compiles the join of 340M documents for TPU chips that are not there; prints bytes a chip.

`search_aot.py v5e:4x4 256`: on that topology, each chip with its share of a pod of 256.
"""

import json
import sys

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from cm3leon_jax import config
from cm3leon_jax.chips import devices_of
from cm3leon_jax.retrieval.mesh_search import SCORED, search_program, split
from cm3leon_jax.sharding import make_mesh

DOCUMENTS, WIDTH, CANDIDATES = 340_000_000, 512, 64


def main(topology: str, pod: int) -> None:
    mesh = make_mesh(config.Mesh(), devices_of(topology))
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
