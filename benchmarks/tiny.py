"""The quickstart's model: training and decoding against the matmul rate of the same run.

The floor of a step is its matrix products (6 x parameters FLOPs per token in training, 2 x in
decoding) at the rate that a large square product reaches on this machine, measured here.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cm3leon_jax import config
from cm3leon_jax.data.examples import Examples
from cm3leon_jax.data.loader import token_batches
from cm3leon_jax.data.shards import CodedRecord
from cm3leon_jax.decoding.engine import draw_codes, pad_prompts
from cm3leon_jax.decoding.logits import Guidance, Sampling
from cm3leon_jax.models.transformer import Transformer
from cm3leon_jax.presets import preset
from cm3leon_jax.tokens.text import TextTokenizer
from cm3leon_jax.tokens.vocabulary import BREAK, EOS
from cm3leon_jax.training.optimizer import make_optimizer, make_schedule
from cm3leon_jax.training.step import init_state, train_step

SIDE = 2048
IMAGES = 128


def measure() -> str:
    """A Markdown table."""
    c = preset("tiny")
    rate = matmul_rate()
    rows = [("matrix product, f32", f"{rate / 1e9:.0f} GFLOP/s", "1.00")]

    source = documents(c)
    loader = iter(token_batches([(source, 1.0)], source.text, c))
    batch = next(loader)
    tokens = float(batch["weights"].sum())
    seconds = median_seconds(lambda: next(loader), 50)
    rows.append(("loader", f"{tokens / seconds:,.0f} tokens/s", ""))

    optimizer = make_optimizer(c.optimizer, c.train.steps)
    codebook = jnp.zeros((c.model.image_codes, c.model.code_features))
    state = jax.jit(lambda key: init_state(c, optimizer, key, codebook))(jax.random.key(0))
    schedule = make_schedule(c.optimizer, c.train.steps)
    step = jax.jit(partial(train_step, c, optimizer, schedule))
    seconds = median_seconds(lambda: step(state, batch), 10)
    floor = 6 * c.model.parameters * batch["tokens"].size / rate
    rows.append(("train step", f"{tokens / seconds:,.0f} tokens/s", f"{floor / seconds:.2f}"))

    codebook = jnp.zeros((c.model.image_codes, c.model.code_features))
    model = Transformer(c.model, rngs=nnx.Rngs(0), codebook=codebook)
    prompt = np.array([EOS, *range(c.model.specials, c.model.specials + 14), BREAK])
    prompts, keys = (
        pad_prompts([[prompt]], model.image_start),
        jax.random.split(jax.random.key(0), IMAGES),
    )
    count = c.model.image_tokens
    draw = lambda: draw_codes(model, prompts, keys, Sampling(0.2), Guidance(), count)  # noqa: E731
    seconds = median_seconds(draw, 5)
    floor = 2 * c.model.parameters * IMAGES * (len(prompt) + count) / rate
    rows.append(("draw images", f"{IMAGES / seconds:,.0f} images/s", f"{floor / seconds:.2f}"))

    lines = ["| what | rate | share of the matmul rate |", "|---|---:|---:|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def matmul_rate() -> float:
    """FLOP/s of a large square float32 product."""
    x = jnp.ones((SIDE, SIDE))
    product = jax.jit(lambda x: x @ x)
    return 2 * SIDE**3 / median_seconds(lambda: product(x), 10)


def documents(c: config.Experiment) -> Examples:
    """Random documents of the quickstart's lengths, in memory."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("aeionrstlmdk"), rng.integers(2, 6))) for _ in range(99)]
    captions = [" ".join(rng.choice(words, rng.integers(6, 22))) for _ in range(2000)]
    codes = rng.integers(0, c.model.image_codes, (2000, c.model.image_tokens), np.int32)
    records = [CodedRecord(f"{i}", pair) for i, pair in enumerate(zip(captions, codes))]
    with tempfile.TemporaryDirectory() as folder:
        text = TextTokenizer.train(captions, f"{folder}/text.model", c.model.text_pieces)
    return Examples(records, text, replace(c, retrieval=config.Retrieval()))


def median_seconds(run: Callable[[], object], times: int) -> float:
    """Median of `times` runs after one that is not counted."""
    jax.block_until_ready(run())
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))
