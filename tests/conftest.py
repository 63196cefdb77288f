"""Eight simulated devices for every test, and one small experiment that all of them share."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
import pytest

from cm3leon_jax import config
from cm3leon_jax.data.shards import TokenDocument
from cm3leon_jax.tokens.document import Document, Image, Text
from cm3leon_jax.tokens.vocabulary import Vocabulary

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


@pytest.fixture
def small() -> config.Experiment:
    """An experiment whose every part is as small as it can be."""
    return config.replace(config.Experiment(), SMALL)


def make_documents(c: config.Experiment, count: int = 40) -> list[TokenDocument]:
    """Random caption-image documents."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(count):
        text = rng.integers(0, c.model.text_pieces, rng.integers(2, 9))
        codes = rng.integers(0, c.model.image_codes, c.model.image_tokens)
        ids = Document((Text(text), Image(codes))).to_ids(Vocabulary.of(c.model))
        made.append(TokenDocument(f"document-{i}", ids, ()))
    return made
