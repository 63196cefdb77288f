"""Compiles a shallow 7B for TPU chips that are not there; prints what the test looks at as JSON.

`plan_aot.py v5e:16x16`: one row a chip, on that slice.
"""

import json
import sys

from cm3leon_jax import config, presets
from cm3leon_jax.chips import devices_of
from cm3leon_jax.plan import plan_training


def main(topology: str) -> None:
    shallow = {"model.layers": 2, "train.batch": len(devices_of(topology))}
    plan = plan_training(config.replace(presets.preset("7b"), shallow), topology)
    found = {
        "state": plan.kinds["parameters"] + plan.kinds["optimizer state"],
        "aliased": plan.aliased,
        "total": plan.total,
        "memory": plan.chip.memory,
        "census": plan.census,
        "has_splash": "splash" in plan.text,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
