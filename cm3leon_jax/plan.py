"""Ahead-of-time planning: compiles the real training step, or the real drawing of images, for TPU
chips that are not there, and says what they would need.

Bytes per chip and collectives are the compiler's. Step time and days are an estimate: FLOPs by our
own formula (`Model.train_flops`), over the chips' peak, times what published runs reach of it.
XLA's own `cost_analysis` counts a scanned layer once, so it is not used.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cm3leon_jax import config
from cm3leon_jax.chips import GIB, Chip, chip_of, devices_of
from cm3leon_jax.decoding.engine import Prompts, draw_codes
from cm3leon_jax.decoding.logits import Guidance, Sampling
from cm3leon_jax.models.transformer import Transformer
from cm3leon_jax.sharding import batch_sharding, check_batch, make_mesh, shardings, ways
from cm3leon_jax.tokens.packing import INTEGERS
from cm3leon_jax.training.optimizer import make_optimizer, make_schedule
from cm3leon_jax.training.step import compile_step, init_state, train_step

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
POLICIES = ("none", "minimal", "offload", "full")  # in the order of what they compute again
PROMPT = 256  # tokens of a planned prompt
BITS = {"pred": 8, "s8": 8, "u8": 8, "bf16": 16, "f16": 16, "s16": 16, "u16": 16, "s64": 64}

Census = dict[str, tuple[int, int]]
"""Collectives of a program: kind -> (how many there are, bytes of their results)."""


class DoesNotFit(ValueError):
    """The program needs more memory than a chip has; the message says what to change."""


@dataclass(frozen=True)
class Plan:
    """What one compiled program takes on each chip. Bytes, unless another unit is named."""

    chips: int
    chip: Chip
    mesh: tuple[int, ...]  # data, fsdp, tensor
    kinds: Mapping[str, int]  # bytes of what rests on the chip, by kind
    temporary: int
    program: int
    host: int  # in the host's memory, per chip
    aliased: int  # of the arguments, replaced by results in place
    census: Census
    text: str  # the compiled program

    @property
    def total(self) -> int:
        return sum(self.kinds.values()) + self.temporary + self.program

    def table(self) -> str:
        """Bytes and collectives as Markdown."""
        rows = {**self.kinds, "temporaries": self.temporary, "program": self.program}
        lines = ["| per chip | GiB |", "|---|---:|"]
        lines += [f"| {kind} | {size / GIB:.2f} |" for kind, size in rows.items()]
        lines.append(f"| together, of {self.chip.memory / GIB:.0f} | {self.total / GIB:.2f} |")
        if self.host:
            lines.append(f"| in the host's memory | {self.host / GIB:.2f} |")
        lines += ["", "| collectives, those of a loop once | count | MiB |", "|---|---:|---:|"]
        for kind, (count, size) in self.census.items():
            lines.append(f"| {kind} | {count} | {size / 2**20:,.1f} |")
        return "\n".join(lines if self.census else lines[:-3])


@dataclass(frozen=True)
class Estimate:
    """What a run would take, by arithmetic."""

    tokens: int  # in a step
    flops: float  # per token
    step: float  # seconds
    days: float


def plan_training(c: config.Experiment, topology: str) -> Plan:
    """Compiles the training step of `c`. Raises DoesNotFit, ValueError for what does not divide."""
    mesh = make_mesh(c.mesh, devices_of(topology))
    check_batch(c.train.batch, c.train.accumulate, mesh)
    optimizer = make_optimizer(c.optimizer, c.train.steps)
    state = _placed(partial(init_state, c, optimizer), mesh)
    shape = (c.train.batch, c.data.row_length)
    kinds = dict.fromkeys(INTEGERS, jnp.int32)
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh))
        for name, dtype in (kinds | {"weights": jnp.float32}).items()
    }
    step = partial(train_step, c, optimizer, make_schedule(c.optimizer, c.train.steps))
    resting = {
        "parameters": _bytes(state.model),
        "optimizer state": _bytes(state.moments),
        "batch": _bytes(batch),
    }
    rows = c.train.batch // c.train.accumulate // ways(mesh)
    changes = {
        "fewer rows (more of train.accumulate)": rows > 1,
        "model.remat=full": c.model.remat != "full",
        "optimizer.moment_dtype=bfloat16": c.optimizer.moment_dtype != "bfloat16",
        "more chips": True,
    }
    use = " or ".join(change for change, helps in changes.items() if helps)
    advice = f"with {_times(rows, 'row', 'rows')} a chip and remat {c.model.remat}: use {use}"
    with jax.set_mesh(mesh):
        lowered = compile_step(step, state, mesh).lower(state, batch)
    return _compile(lowered, mesh, resting, advice)


def plan_decode(c: config.Experiment, topology: str, images: int) -> Plan:
    """Compiles the drawing of `images` pictures with guidance, weights split over `tensor`."""
    devices = devices_of(topology)
    heads = math.gcd(c.model.heads, c.model.kv_heads or c.model.heads)
    tensor = math.gcd(len(devices), heads)
    mesh = make_mesh(config.Mesh(len(devices) // tensor, 1, tensor), devices)
    init = lambda key: Transformer(c.model, rngs=nnx.Rngs(key)).for_decoding()  # noqa: E731
    model = _placed(init, mesh)
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def form(shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=replicated)

    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), images))
    ids = form((2 * images, PROMPT), jnp.int32)
    prompts = Prompts(ids, ids, form((2 * images,), jnp.int32))
    number = form((), jnp.float32)
    sampling, count = Sampling(number, number), c.model.image_tokens
    with jax.set_mesh(mesh):
        lowered = draw_codes.lower(
            model, prompts, form(keys.shape, keys.dtype), sampling, Guidance(text=number), count
        )
    advice = f"with {images} images: draw fewer at once, or use more chips"
    return _compile(lowered, mesh, {"parameters": _bytes(model)}, advice)


def search(
    c: config.Experiment, topology: str, policies: tuple[str, ...] = POLICIES[1:]
) -> Iterator[tuple[str, int, Plan | str]]:
    """Tries remat policies, each with 1, 2, 4, ... rows a chip until no more fit or are there.

    Yields (policy, rows, Plan or why it does not fit).
    """
    mesh = make_mesh(c.mesh, devices_of(topology))
    check_batch(c.train.batch, 1, mesh)
    most = c.train.batch // ways(mesh)
    for policy in policies:
        for rows in (2**n for n in range(most.bit_length()) if most % 2**n == 0):
            changed = with_rows(config.replace(c, {"model.remat": policy}), topology, rows)
            try:
                yield policy, rows, plan_training(changed, topology)
            except DoesNotFit as error:
                yield policy, rows, str(error)
                break


def describe_training(c: config.Experiment, topology: str, plan: Plan) -> str:
    """What compiling measured and what arithmetic adds, as Markdown."""
    guess, chip = estimate(c, plan), plan.chip
    trillions, passes = guess.tokens * c.train.steps / 1e12, c.train.accumulate
    return f"""{_head(c, topology, plan)}

Measured by compiling the training step: {c.train.batch:,} rows of {c.data.row_length:,} tokens,
in {_times(passes, "pass", "passes")}, remat {c.model.remat}.

{plan.table()}

Estimated, not measured: {guess.step:.1f} s a step of {guess.tokens:,} tokens,
{guess.days:.1f} days for {trillions:.2f}T tokens: {guess.flops / 1e9:.1f} GFLOP a token
(6 for each weight, and attention) at {chip.utilization:.0%} of {chip.flops / 1e12:.0f} TFLOP/s
a chip, as published runs of 8 to 30 billion parameters reach."""


def describe_decode(c: config.Experiment, topology: str, plan: Plan, images: int) -> str:
    """The same for drawing `images` pictures with guidance."""
    count, resting = c.model.image_tokens, plan.kinds["parameters"] + plan.temporary
    seconds, drawn = resting / plan.chip.bandwidth, _times(images, "image", "images")
    return f"""{_head(c, topology, plan)}

Measured by compiling the drawing of {drawn} of {count:,} codes with guidance.

{plan.table()}

Estimated, not measured: reading parameters and temporaries, the cache among them, once a token
at {plan.chip.bandwidth / 1e12:.2f} TB/s takes {1000 * seconds:.1f} ms: at most
{images / (seconds * count):.2f} images/s."""


def describe_search(c: config.Experiment, topology: str) -> Iterator[str]:
    """Lines of the table of `search`, each as soon as it is known, and then the choice."""
    yield "| remat | rows a chip | GiB a chip | temporaries | host | |"
    yield "|---|---:|---:|---:|---:|---|"
    best: tuple[str, int] | None = None
    for policy, rows, found in search(c, topology):
        if isinstance(found, str):
            yield f"| {policy} | {rows} | | | | {found} |"
            continue
        sizes = (found.total, found.temporary, found.host)
        yield f"| {policy} | {rows} | {' | '.join(f'{n / GIB:.2f}' for n in sizes)} | fits |"
        if best is None or policy == best[0]:
            best = policy, rows
    if best is None:
        yield "\nNothing fits: use more chips, or optimizer.moment_dtype=bfloat16."
    else:
        yield f"\nThe least computed again: remat {best[0]} with {best[1]} rows a chip at once."


def _head(c: config.Experiment, topology: str, plan: Plan) -> str:
    mesh = " x ".join(map(str, plan.mesh))
    return (
        f"{c.model.parameters:,} parameters on {topology}: {_times(plan.chips, 'chip', 'chips')},"
        f" mesh (data, fsdp, tensor) {mesh}."
    )


def _times(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def estimate(c: config.Experiment, plan: Plan) -> Estimate:
    """Step time and days for all of `train.steps`, at the utilization of published runs."""
    tokens = c.train.batch * c.data.row_length
    flops = c.model.train_flops(c.data.row_length)
    step = tokens * flops / (plan.chips * plan.chip.flops * plan.chip.utilization)
    return Estimate(tokens, flops, step, step * c.train.steps / 86_400)


def with_rows(c: config.Experiment, topology: str, rows: int | None) -> config.Experiment:
    """The experiment with as many accumulation passes as give `rows` a chip in each, if given."""
    if rows is None:
        return c
    mesh = make_mesh(c.mesh, devices_of(topology))
    check_batch(c.train.batch, 1, mesh)
    most = c.train.batch // ways(mesh)
    if most % rows:
        fits = [n for n in range(1, most + 1) if most % n == 0]
        raise ValueError(f"rows={rows}: a chip has {most} rows a step; use one of {fits}")
    return config.replace(c, {"train.accumulate": most // rows})


def take_census(text: str) -> Census:
    """Collectives of a compiled program's text, each channel once.

    What a loop repeats counts once, and so does what XLA writes out several times to overlap it.
    """
    found: dict[tuple[str, str], int] = {}
    pattern = rf"= (.*?) ({'|'.join(COLLECTIVES)})(?:-start)?\(.*?channel_id=(\d+)"
    for form, kind, channel in re.findall(pattern, text):
        arrays = re.findall(r"(\w+)\[([\d,]*)\]", form)
        sizes = [_size(kind_of, shape) for kind_of, shape in arrays]
        found[kind, channel] = max(sizes, default=0)  # of (operand, result) pairs the result
    return {
        kind: (len(sizes), sum(sizes))
        for kind in COLLECTIVES
        if (sizes := [size for (name, _), size in found.items() if name == kind])
    }


def _size(dtype: str, shape: str) -> int:
    bits = BITS.get(dtype, 32)
    return math.prod(int(n) for n in shape.split(",") if n) * bits // 8


def _compile(
    lowered: jax.stages.Lowered, mesh: jax.sharding.Mesh, resting: Mapping[str, int], advice: str
) -> Plan:
    device = mesh.devices.flat[0]
    chip = chip_of(device.device_kind)
    assert chip is not None  # devices_of gives no other
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        sizes = re.findall(r"[\d.]+[KMG](?:iB|B)?\b", str(error))
        needs = f"needs {' of '.join(sizes[:2])}" if sizes else "needs more than there is"
        raise DoesNotFit(f"{device.device_kind}: {needs} of memory {advice}") from None
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory is not None  # the TPU compiler tells both
    assert text is not None
    return Plan(
        chips=mesh.size,
        chip=chip,
        mesh=tuple(mesh.shape.values()),
        kinds=dict(resting),
        temporary=memory.temp_size_in_bytes,
        program=memory.generated_code_size_in_bytes,
        host=memory.host_temp_size_in_bytes + memory.host_argument_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        census=take_census(text),
        text=text,
    )


def _placed(init: Any, mesh: jax.sharding.Mesh) -> Any:
    """The form of what `init(key)` makes, on its shardings; nothing is computed."""
    form = jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)))
    return jax.tree.map(
        lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at),
        form,
        shardings(form, mesh),
    )


def _bytes(tree: Any) -> int:
    """Bytes of placed forms on one chip."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )
