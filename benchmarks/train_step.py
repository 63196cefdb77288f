"""The training step against Hugging Face transformers' Chameleon in torch: one shape, one batch.

Both take a full batch of causal rows without padding through forward, loss, backward, the clip of
the gradient norm and AdamW, in turn, each on all cores or on the one GPU. MFU is the share of the
rate that a large square product reaches in the same run (on a GPU in bfloat16, by cuBLAS under
JAX), of `Model.train_flops` per token. Memory is what one step takes: of ours what XLA plans, of
torch the peak on a GPU.
"""

import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._chameleon import shape, their_model
from benchmarks.tiny import median_seconds
from cm3leon_jax import config
from cm3leon_jax.sharding import make_mesh
from cm3leon_jax.training.optimizer import make_optimizer, make_schedule
from cm3leon_jax.training.step import compile_step, init_sharded, init_state, train_step

Step = Callable[[], float]  # one update; returns its loss, so that it is done

# layers, width, heads, mlp, places in a row, rows
SIZES = {
    "cpu": ((4, 256, 4, 688, 512, 4), (4, 512, 8, 1376, 512, 2), (4, 512, 8, 1376, 1024, 1)),
    "gpu": ((16, 2048, 16, 5504, 4096, 4),),
}
REMAT = {"cpu": ("none", "full"), "gpu": ("minimal", "full")}
TIMES = 7


def measure() -> str:
    """A Markdown table."""
    platform = jax.devices()[0].platform
    dtype = "float32" if platform == "cpu" else "bfloat16"
    peak = matmul_rate(dtype, 2048 if platform == "cpu" else 16_384)
    rows = [(f"matrix product, {dtype}", "", f"{peak / 1e9:,.0f} GFLOP/s", "1.00", "", "")]
    for size in SIZES[platform]:
        c = shape(size, dtype, platform)
        m = c.model
        name = f"{m.parameters / 1e6:.0f}M, {m.layers} x {m.width}, T = {m.context}"
        batch = make_batch(c)
        steps: dict[str, Step] = {}
        memory = {}
        steps["torch"], memory["torch"] = their_step(c, batch)
        for remat in REMAT[platform]:
            again = config.replace(c, {"model.remat": remat})
            steps[remat], memory[remat] = our_step(again, batch)
        seconds = in_turn(steps)
        for step, took in seconds.items():
            rate = batch["tokens"].size / took
            what = "transformers" if step == "torch" else f"ours, remat {step}"
            share, ratio = rate * m.train_flops(m.context) / peak, seconds["torch"] / took
            gib = f"{memory[step]() / 2**30:.2f} GiB" if memory[step] else ""
            rows.append((name, what, f"{rate:,.0f} tokens/s", f"{share:.2f}", gib, f"{ratio:.2f}"))
    head = "| size | step | rate | MFU | memory | times transformers |"
    return "\n".join(
        [head, "|---|---|---:|---:|---:|---:|", *(f"| {' | '.join(r)} |" for r in rows)]
    )


def make_batch(c: config.Experiment) -> dict[str, np.ndarray]:
    """Random ids, every place one of one long document: [B T] each."""
    rows, length = c.train.batch, c.data.row_length
    ids = np.random.default_rng(0).integers(5, c.model.vocabulary, (rows, length + 1), np.int32)
    return {
        "tokens": ids[:, :-1],
        "targets": ids[:, 1:],
        "weights": np.ones((rows, length), np.float32),
        "segments": np.ones((rows, length), np.int32),
        "positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        "codes_at": np.full((rows, length), -1, np.int32),  # the form has no code_positions
    }


def our_step(c: config.Experiment, batch: dict[str, np.ndarray]) -> tuple[Step, Callable[[], int]]:
    """An update, and the bytes that XLA plans for it."""
    mesh = make_mesh(c.mesh, jax.devices()[:1])
    optimizer = make_optimizer(c.optimizer, c.train.steps)
    init = lambda key: init_state(c, optimizer, key)  # noqa: E731
    state = init_sharded(init, jax.random.key(0), mesh)
    step = partial(train_step, c, optimizer, make_schedule(c.optimizer, c.train.steps))
    with jax.set_mesh(mesh):
        run = compile_step(step, state, mesh).lower(state, batch).compile()
    plan = run.memory_analysis()
    kept = [state, jax.device_put(batch)]

    def update() -> float:
        kept[0], metrics = run(*kept)
        return float(metrics["loss"])

    return update, lambda: plan.argument_size_in_bytes + plan.temp_size_in_bytes


def their_step(
    c: config.Experiment, batch: dict[str, np.ndarray]
) -> tuple[Step, Callable[[], int] | None]:
    """The same of transformers, in eager torch with its fastest attention and fused AdamW.

    On a GPU parameters and moments are float32 and the computation bfloat16, as ours.
    """
    import torch

    on_gpu = torch.cuda.is_available() and jax.devices()[0].platform == "gpu"
    device = torch.device("cuda" if on_gpu else "cpu")
    model = their_model(c.model, use_cache=False).to(device).train()
    o = c.optimizer
    rates = {"lr": o.learning_rate, "weight_decay": o.weight_decay, "eps": o.epsilon}
    optimizer = torch.optim.AdamW(model.parameters(), betas=(o.beta1, o.beta2), fused=True, **rates)
    tokens, targets = (torch.from_numpy(batch[k]).long().to(device) for k in ("tokens", "targets"))

    def update() -> float:
        with torch.autocast("cuda", torch.bfloat16, enabled=on_gpu):
            logits = model(input_ids=tokens).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), o.clip)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return update, (torch.cuda.max_memory_allocated if on_gpu else None)


def in_turn(steps: dict[str, Step]) -> dict[str, float]:
    """Median seconds of each step, all once per round, so that they share what else runs."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for counted in [False, *[True] * TIMES]:
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if counted:
                seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(taken)) for name, taken in seconds.items()}


def matmul_rate(dtype: str, side: int) -> float:
    """FLOP/s of a large square product."""
    x = jnp.ones((side, side), dtype)
    product = jax.jit(lambda x: x @ x)
    return 2 * side**3 / median_seconds(lambda: product(x), 10)
