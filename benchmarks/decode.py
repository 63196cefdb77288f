"""Drawing image codes against Hugging Face transformers' Chameleon in torch: one shape, one task.

Both draw the same number of codes after random prompts, with temperature 1 and top-p 0.9, from the
image's columns alone; with guidance both run two streams in one batch. Torch takes its fastest way:
`generate` with a static cache, compiled on a GPU, and all that is done to logits done to the
image's columns only. Times are of the whole call, prompt included. The roofline is the time that
the bytes read for one token, of weights and cache, take at the rate at which JAX rewrites a large
array in place, measured in the same run (bytes read and written).
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks._chameleon import shape, their_model
from benchmarks.tiny import median_seconds
from cm3leon_jax import config
from cm3leon_jax.decoding.engine import Prompts, draw_codes, pad_prompts
from cm3leon_jax.decoding.logits import Guidance, Sampling
from cm3leon_jax.models.transformer import Transformer

# Layers, width, heads, mlp, places, rows; then codes an image, and (images, streams) of a setting.
ALL = ((1, 1), (1, 2), (8, 1), (8, 2))
GUIDED = ((1, 2), (8, 2))
SIZES = {
    "cpu": (
        ((4, 512, 8, 1376, 4096, 1), 256, ALL),
        ((4, 512, 8, 1376, 4096, 1), 1024, GUIDED),
    ),
    "gpu": (((16, 2048, 16, 5504, 4096, 1), 1024, ALL),),
}
SCALE, TOP_P = 3.0, 0.9
PROMPT = 64  # tokens
RETRIEVED = 2200  # tokens of a prompt with retrieved documents
SAMPLES = 8  # of that prompt
COPIED = {"cpu": 2**29, "gpu": 2**32}  # bytes


class Setting(NamedTuple):
    """What one pair of rows measures."""

    images: int
    streams: int
    count: int  # codes an image

    def guidance(self) -> Guidance:
        return Guidance(text=SCALE if self.streams == 2 else None)

    def prompts(self, m: config.Model, length: int = PROMPT) -> Prompts:
        """Random text, another of every row."""
        first, rng = m.specials, np.random.default_rng(0)
        shape = (self.streams, self.images, length)
        ids = rng.integers(first, first + m.text_pieces, shape, np.int32)
        return pad_prompts([list(stream) for stream in ids], first + m.text_pieces)


def measure() -> str:
    """A Markdown table."""
    platform = jax.devices()[0].platform
    dtype = "float32" if platform == "cpu" else "bfloat16"
    rate = copy_rate(COPIED[platform])
    rows = [(f"copy, {rate / 1e9:.1f} GB/s", "", "", "", "", "1.00", "")]
    for size, count, settings in SIZES[platform]:
        c = shape(size, dtype, platform)
        side = round(count**0.5) * 16
        m = config.replace(c, {"model.image_tokens": count, "image_tokenizer.size": side}).model
        model = Transformer(m, rngs=nnx.Rngs(0)).for_decoding()
        peer = load_peer(m)
        for images, streams in settings:
            setting = Setting(images, streams, count)
            runs = {"transformers": their_draw(m, peer, setting), "ours": our_draw(model, setting)}
            seconds = in_turn(runs, 768 // count or 1 if platform == "cpu" else 3)
            least = bytes_read(m, setting) / rate
            name = f"{m.parameters / 1e6:.0f}M, {count} codes, {images} x {streams}"
            for engine, took in seconds.items():
                figures = (
                    f"{images * count / took:,.0f}",
                    f"{1e3 * took / count:.2f}",
                    f"{images / took:.3f}",
                    f"{least * count / took:.2f}",
                    f"{seconds['transformers'] / took:.2f}",
                )
                rows.append((name, engine, *figures))
    head = "| size, codes, images x streams | engine | tokens/s | ms/token | images/s"
    head += " | share of roofline | times transformers |"
    lines = [head, "|---|---|---:|---:|---:|---:|---:|", *(f"| {' | '.join(r)} |" for r in rows)]
    return "\n".join([*lines, "", prefill_line(model)])


def our_draw(model: Transformer, setting: Setting) -> Callable[[], Any]:
    """One call of the engine, compiled before it is timed."""
    sampling, guidance = Sampling(1.0, TOP_P), setting.guidance()
    prompts = setting.prompts(model.config)
    keys = jax.random.split(jax.random.key(0), setting.images)
    given = (model, prompts, keys, sampling, guidance)
    run = draw_codes.lower(*given, setting.count).compile()
    return lambda: jax.block_until_ready(run(*given))


def load_peer(m: config.Model) -> Any:
    """transformers' model as it decodes fastest here: in our dtype, on the GPU if JAX is."""
    import torch

    model = their_model(m, eos_token_id=None, bos_token_id=None, pad_token_id=1).eval()
    on_gpu = torch.cuda.is_available() and jax.devices()[0].platform == "gpu"
    return model.to(torch.device("cuda" if on_gpu else "cpu"), getattr(torch, m.dtype))


def their_draw(m: config.Model, model: Any, setting: Setting) -> Callable[[], Any]:
    """`generate` for all streams in one batch; the processor draws for both and leaves one token.

    transformers' own guidance runs the model once for each stream and its nucleus sorts all
    columns, so this is faster. Warmed up: on a GPU by a whole call, as the cache's length is
    compiled in.
    """
    import torch
    from transformers import LogitsProcessor, LogitsProcessorList, TopPLogitsWarper

    first, top_p = m.specials + m.text_pieces, TopPLogitsWarper(TOP_P)

    class DrawCode(LogitsProcessor):
        def __call__(self, ids: Any, logits: Any) -> Any:
            z = logits[:, first:]
            if setting.streams == 2:
                conditional, unconditional = z.chunk(2)
                z = unconditional + SCALE * (conditional - unconditional)
            drawn = torch.multinomial(top_p(ids, z).softmax(-1), 1).repeat(setting.streams, 1)
            return torch.full_like(logits, -torch.inf).scatter_(1, drawn + first, 0.0)

    tokens = torch.from_numpy(setting.prompts(m).tokens).long().to(model.device)

    def draw(count: int = setting.count) -> None:
        with torch.inference_mode():
            out = model.generate(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                do_sample=False,  # the processor has drawn
                max_new_tokens=count,
                cache_implementation="static",
                logits_processor=LogitsProcessorList([DrawCode()]),
            ).cpu()  # waits for the GPU
        codes = out[:, tokens.shape[1] :].reshape(setting.streams, setting.images, count)
        assert (codes >= first).all()
        assert (codes == codes[0]).all()

    draw(setting.count if model.device.type == "cuda" else 8)
    return draw


def in_turn(runs: dict[str, Callable[[], Any]], times: int) -> dict[str, float]:
    """Median seconds of each, all once per round, so that they share what else runs."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(times):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(taken)) for name, taken in seconds.items()}


def bytes_read(m: config.Model, setting: Setting) -> float:
    """Bytes of weights and cache that one token of every image must read, on average.

    The weights are those of the layers and the output embeddings of the image's columns; of the
    cache, the slots that are full.
    """
    wide, size = m.width, jnp.dtype(m.dtype).itemsize
    head_columns = (m.kv_heads or m.heads) * m.head_size
    layer = 2 * wide * m.heads * m.head_size + 2 * wide * head_columns + 3 * wide * m.mlp
    slots = PROMPT + setting.count / 2
    cache = 2 * m.layers * setting.images * setting.streams * slots * head_columns
    return size * (m.layers * layer + m.image_codes * wide + cache)


def copy_rate(count: int) -> float:
    """Bytes read and written a second, of an array of so many bytes rewritten in place."""
    flip = jax.jit(lambda x: -x, donate_argnums=0)
    kept = [jnp.ones(count // 4, jnp.float32)]

    def rewrite() -> jax.Array:
        kept[0] = flip(kept[0])
        return kept[0]

    return 2 * count / median_seconds(rewrite, 10)


def prefill_line(model: Transformer) -> str:
    """What the first code of several samples of one long prompt costs, over that of one sample."""
    one = Setting(1, 2, 1)
    prompts = one.prompts(model.config, RETRIEVED)

    def draw(samples: int) -> Callable[[], jax.Array]:
        keys = jax.random.split(jax.random.key(0), samples)
        sampling = Sampling(1.0, TOP_P)
        return lambda: draw_codes(model, prompts, keys, sampling, one.guidance(), 1)

    single, several = (median_seconds(draw(samples), 3) for samples in (1, SAMPLES))
    return (
        f"First code of a prompt of {RETRIEVED:,} tokens with guidance: {single:.2f} s for one"
        f" sample, {several:.2f} s for {SAMPLES}, {several / single:.2f} times as long."
    )
