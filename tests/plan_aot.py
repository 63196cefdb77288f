"""Compiles a shallow 7B for TPU chips that are not there; prints what the test looks at as JSON.

`plan_aot.py v5e:4x4 minimal`: on that slice, with that remat policy.
"""

import json
import sys
from dataclasses import asdict

import jax

from cm3leon_jax import config, presets
from cm3leon_jax.plan import plan_training
from cm3leon_jax.sharding import make_mesh
from cm3leon_jax.chips import devices_of


def main(topology: str, remat: str) -> None:
    devices = len(devices_of(topology))
    shallow = {"model.layers": 2, "train.batch": devices, "model.remat": remat}
    slices = topology.count(" x ") + 1
    if slices > 1:
        shallow |= {"mesh.data": slices}
    plan = plan_training(config.replace(presets.preset("7b"), shallow), topology)
    found = {
        "kinds": dict(plan.kinds),
        "temporary": plan.temporary,
        "total": plan.total,
        "memory": plan.chip.memory,
        "host": plan.host,
        "aliased": plan.aliased,
        "census": plan.census,
        "splash": plan.text.count("splash"),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
