"""The 7B compiled for two pods that are not there: memory and collectives against their bounds.

Not a time: what the TPU compiler says of the whole 32 layers (`tests/test_plan.py` compiles two).
Some minutes and 4 GiB of memory; needs libtpu (`pip install 'jax[tpu]'`).
"""

from cm3leon_jax import config
from cm3leon_jax.chips import GIB
from cm3leon_jax.plan import Plan, estimate, plan_training
from cm3leon_jax.presets import preset

# topology, remat, rows a chip, bound: (what, GiB)
CASES = (
    ("v5e:16x16", "full", 2, ("temporaries", 5.8)),
    ("v5p:4x4x8", "minimal", 4, ("together", 95.0)),
)


def measure() -> str:
    """A Markdown table, and the collectives of each program below it."""
    lines = ["| 7B, T = 4,096 | GiB a chip | bound | state donated | MFU-free estimate |"]
    lines = [
        "| 7B, rows of 4,096 | temporaries | together | bound | state replaced in place | days |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    censuses = []
    for topology, remat, rows, (what, bound) in CASES:
        c, plan = compile_case(topology, remat, rows)
        sizes = {"temporaries": plan.temporary / GIB, "together": plan.total / GIB}
        state = plan.kinds["parameters"] + plan.kinds["optimizer state"]
        # The days of the preset's own batch: more passes, the same FLOPs.
        days = estimate(preset("7b"), plan).days
        lines.append(
            f"| {topology}, remat {remat}, {rows} rows a chip | {sizes['temporaries']:.2f} |"
            f" {sizes['together']:.2f} | {what} <= {bound} | {plan.aliased / state:.0%} | {days:.1f} |"
        )
        censuses.append(f"\n{topology}, collectives in the program:\n")
        censuses += [
            f"- {kind}: {count}, {size / 2**20:,.1f} MiB"
            for kind, (count, size) in plan.census.items()
        ]
        if sizes[what] > bound:
            raise SystemExit(f"plan_7b: {topology}: {what} {sizes[what]:.2f} GiB > {bound}")
    return "\n".join([*lines, *censuses])


def compile_case(topology: str, remat: str, rows: int) -> tuple[config.Experiment, Plan]:
    """The preset with `rows` on each chip in one pass."""
    a, *rest = (int(n) for n in topology.partition(":")[2].split("x"))
    for n in rest:
        a *= n
    c = config.replace(preset("7b"), {"model.remat": remat, "train.batch": rows * a})
    return c, plan_training(c, topology)
