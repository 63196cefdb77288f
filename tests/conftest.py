"""Eight simulated devices for every test, and one small experiment that all of them share."""

import os
import tempfile
from functools import cache
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
import pytest
from jax._src import compiler

from cm3leon_jax import config
from cm3leon_jax.data import emoji
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


# What XLA is to leave out of tests, whose time it is: a training step of two layers compiles in
# 1.0 s instead of 4.9 s of one core.
QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
}
QUICK_FLAGS = " ".join(f"--{name}={value}" for name, value in QUICK.items())  # of a process

optimized_options = compiler.get_compile_options


def quick_options(*given, env_options_overrides=None, **more):
    """Options of compiling, those of QUICK among them unless the program has its own."""
    options = QUICK | (env_options_overrides or {})
    return optimized_options(*given, env_options_overrides=options, **more)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "optimized: compiles as users do, since programs of different shapes must give equal bits,"
        " or a compiled program is looked at",
    )


@pytest.hookimpl(tryfirst=True)  # before the fixtures, which compile too
def pytest_runtest_setup(item: pytest.Item) -> None:
    options = optimized_options if item.get_closest_marker("optimized") else quick_options
    if compiler.get_compile_options is not options:
        jax.clear_caches()  # whose keys leave options out
        compiler.get_compile_options = options


# What two workers start with, so that neither ends long behind the other.
LONGEST = ("test_docs", "test_resume", "test_decoding", "test_plan")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture(scope="session")
def font() -> Path:
    """The emoji font, which `.ci/run` installs; without it tests skip and say how to get it."""
    try:
        return emoji.find_font()
    except emoji.FontNotFound as error:
        pytest.skip(str(error))


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
