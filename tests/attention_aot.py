"""Compiles attention's forward and backward pass for TPU chips that are not there.

`attention_aot.py v5e:2x2 v5p:2x2x1`: prints by topology and head size how many splash kernels the
compiled program calls.
"""

import json
import sys

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from cm3leon_jax import config
from cm3leon_jax.chips import devices_of
from cm3leon_jax.models.attention import attend
from cm3leon_jax.sharding import make_mesh

LENGTH, HEADS = 4096, 2


def main(topology: str) -> dict[int, int]:
    mesh = make_mesh(config.Mesh(data=1, fsdp=2, tensor=-1), devices_of(topology))
    by_row = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))

    def loss(query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array) -> jax.Array:
        return attend(query, key, value, segments).astype(jnp.float32).sum()

    calls = {}
    for head in (64, 96, 128):
        form = (2, LENGTH, HEADS * mesh.shape["tensor"], head)
        row = jax.ShapeDtypeStruct(form, jnp.bfloat16, sharding=by_row)
        segments = jax.ShapeDtypeStruct(form[:2], jnp.int32, sharding=by_row)
        with jax.set_mesh(mesh):
            program = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
            text = program.lower(row, row, row, segments).compile().as_text()
        lines = [line for line in text.splitlines() if "tpu_custom_call" in line]
        calls[head] = sum("splash_mha" in line for line in lines)
    return calls


if __name__ == "__main__":
    print(json.dumps({topology: main(topology) for topology in sys.argv[1:]}))
