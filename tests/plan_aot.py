"""Compiles two layers, half as wide as the 7B's, for TPU chips that are not there.

`plan_aot.py v5e:4x4`: one row a chip, on that slice. Prints what the test looks at as JSON.
"""

import json
import sys

from cm3leon_jax import config, presets
from cm3leon_jax.chips import devices_of
from cm3leon_jax.plan import plan_training


def main(topology: str) -> None:
    sizes = {"model.layers": 2, "model.width": 2048, "model.heads": 16, "model.mlp": 8192}
    c = config.replace(presets.preset("7b"), sizes | {"train.batch": len(devices_of(topology))})
    plan = plan_training(c, topology)
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
