"""The 7B compiled for two pods that are not there: memory and collectives against their bounds.

No times: what the TPU compiler says of all 32 layers (`tests/test_plan.py` compiles two of them).
Takes some minutes and 4 GiB of memory; needs libtpu (`pip install 'jax[tpu]'`).
"""

import math

from cm3leon_jax import config
from cm3leon_jax.chips import GIB
from cm3leon_jax.plan import estimate, plan_training
from cm3leon_jax.presets import preset

# topology, remat, rows a chip at once, what is bounded, GiB
CASES = (
    ("v5e:16x16", "full", 2, "temporaries", 5.8),
    ("v5p:4x4x8", "minimal", 4, "together", 95.0),
)


def measure() -> str:
    """A Markdown table, and the collectives of each program below it."""
    lines = [
        "| 7B, rows of 4,096 | temporaries | together, GiB | bound | in place | days, estimated |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    below = []
    for topology, remat, rows, what, bound in CASES:
        chips = math.prod(int(n) for n in topology.partition(":")[2].split("x"))
        changes = {"model.remat": remat, "train.batch": rows * chips}
        plan = plan_training(config.replace(preset("7b"), changes), topology)
        sizes = {"temporaries": plan.temporary / GIB, "together": plan.total / GIB}
        if sizes[what] > bound:
            raise SystemExit(f"plan_7b: {topology}: {what} {sizes[what]:.2f} GiB, not <= {bound}")
        in_place = plan.aliased / (plan.kinds["parameters"] + plan.kinds["optimizer state"])
        cells = (
            f"{topology}, remat {remat}, {rows} rows a chip",
            *(f"{size:.2f}" for size in sizes.values()),
            f"{what} <= {bound}",
            f"{in_place:.0%}",
            f"{estimate(preset('7b'), plan).days:.1f}",  # the preset's batch: the same FLOPs
        )
        lines.append(f"| {' | '.join(cells)} |")
        below += ["", f"{topology}, collectives in the program:", ""]
        below += [f"- {k}: {n}, {size / 2**20:,.1f} MiB" for k, (n, size) in plan.census.items()]
    return "\n".join([*lines, *below])
