"""Eight simulated devices for every test, and one small experiment that all of them share."""

import os
import tempfile
from functools import cache

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
import pytest

from cm3leon_jax import config
from cm3leon_jax.data.examples import Examples
from cm3leon_jax.data.shards import CodedRecord
from cm3leon_jax.tokens.text import TextTokenizer

jax.config.update("jax_num_cpu_devices", 8)

SMALL = {
    "model.layers": 2,
    "model.width": 32,
    "model.heads": 4,
    "model.mlp": 64,
    "model.context": 64,
    "model.specials": 16,
    "model.sentinels": 8,
    "model.text_pieces": 48,
    "model.image_codes": 64,
    "model.image_tokens": 4,
    "model.init_std": 0.1,
    "model.position_std": 0.1,
    "model.init_residual": "scaled",
    "model.dtype": "float32",
    "model.remat": "none",
    "model.loss_chunk": 16,
    "image_tokenizer.codes": 64,
    "image_tokenizer.size": 8,
    "image_tokenizer.patch": 4,
    "image_tokenizer.multipliers": [1],
    "image_tokenizer.channels": 16,
    "image_tokenizer.latent": 16,
    "image_tokenizer.width": 8,
    "image_tokenizer.groups": 4,
    "image_tokenizer.blocks": 1,
    "objective.max_spans": 4,
    "optimizer.warmup_steps": 2,
    "optimizer.learning_rate": 1e-2,
    "train.steps": 12,
    "train.batch": 8,
    "data.row_length": 48,
    "train.log_every": 1,
    "train.sample_every": 100,
    "train.save_every": 4,
    "decode.text_tokens": 6,
}

CHAMELEON = {
    "model.norm": "rmsnorm",
    "model.norm_affine": True,
    "model.activation": "swiglu",
    "model.positions": "rotary",
    "model.qk_norm": True,
    "model.tie_embeddings": False,
    "model.kv_heads": 2,
}

RETRIEVER = {
    "retriever.size": 8,
    "retriever.patch": 4,
    "retriever.width": 16,
    "retriever.layers": 1,
    "retriever.heads": 2,
    "retriever.text_width": 16,
    "retriever.text_layers": 1,
    "retriever.text_heads": 2,
    "retriever.text_tokens": 16,
    "retriever.embedding": 16,
    "retriever.dtype": "float32",
    "retriever.train.steps": 4,
    "retriever.train.batch": 8,
    "retriever.train.log_every": 1,
    "retriever.train.sample_every": 100,
    "retriever.train.save_every": 4,
    "retrieval.most": 2,
}


# Files whose time is XLA's compiling, which takes two thirds as long where LLVM is not to optimize.
# None that holds programs of different shapes equal bit for bit, or looks at a compiled program:
# those compile as users do.
QUICK = {"test_claims", "test_interop_clip", "test_rrdb", "test_vqgan"}


@pytest.fixture(scope="module", autouse=True)
def _optimization(request: pytest.FixtureRequest) -> None:
    name, quick = "jax_disable_most_optimizations", request.module.__name__ in QUICK
    if jax.config.read(name) != quick:
        jax.clear_caches()  # whose keys leave this setting out
        jax.config.update(name, quick)


@pytest.fixture
def small() -> config.Experiment:
    """An experiment whose every part is as small as it can be."""
    return config.replace(config.Experiment(), SMALL)


WORDS = ("a", "bad", "cab", "dad", "ace", "bead", "decade", "facade")


@cache
def make_text(pieces: int = SMALL["model.text_pieces"]) -> TextTokenizer:
    """A text tokenizer whose pieces are most of WORDS."""
    with tempfile.TemporaryDirectory() as folder:
        return TextTokenizer.train([" ".join(WORDS)] * 9, f"{folder}/text.model", pieces)


def make_documents(c: config.Experiment, count: int = 400) -> list[CodedRecord]:
    """Random caption-image records."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(count):
        caption = " ".join(rng.choice(WORDS, rng.integers(2, 9)))
        codes = rng.integers(0, c.model.image_codes, c.model.image_tokens, np.int32)
        made.append(CodedRecord(f"document-{i}", (caption, codes)))
    return made


def make_examples(c: config.Experiment, count: int = 400) -> Examples:
    """Those records as a source without neighbours."""
    return Examples(make_documents(c, count), make_text(), c)
