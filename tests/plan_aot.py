"""Compiles two layers, an eighth as wide as the 7B's, for TPU chips that are not there.

`plan_aot.py v5e:4x4 v6e:4x4`: one row a chip, on each slice. Prints what the test looks at, by
topology, as JSON.
"""

import json
import sys
from typing import Any

from cm3leon_jax import config, presets
from cm3leon_jax.chips import devices_of
from cm3leon_jax.plan import plan_training

# Small, with as many collectives of each kind as at a width of 2048 and 4,096 tokens, where v6e
# took 269 s to compile.
SIZES = {
    "model.layers": 2,
    "model.width": 512,
    "model.heads": 4,
    "model.mlp": 2048,
    "model.context": 1024,
    "model.text_pieces": 3520,
    "model.image_tokens": 256,
    "model.image_codes": 512,
    "image_tokenizer.codes": 512,
    "image_tokenizer.size": 128,
    "data.row_length": 1024,
}


def main(topology: str) -> dict[str, Any]:
    c = config.replace(presets.preset("7b"), SIZES | {"train.batch": len(devices_of(topology))})
    plan = plan_training(c, topology)
    return {
        "state": plan.kinds["parameters"] + plan.kinds["optimizer state"],
        "aliased": plan.aliased,
        "total": plan.total,
        "memory": plan.chip.memory,
        "census": plan.census,
        "has_splash": "splash" in plan.text,
    }


if __name__ == "__main__":
    print(json.dumps({topology: main(topology) for topology in sys.argv[1:]}))
