"""Work directories that are ready to train the transformer, with random networks and documents."""

from pathlib import Path

import numpy as np
from conftest import WORDS
from flax import nnx

from cm3leon_jax import checkpoint, config
from cm3leon_jax.data.shards import CodedRecord, write_shards
from cm3leon_jax.mapped import finish_mapped, write_mapped_part
from cm3leon_jax.models.clip import CLIP
from cm3leon_jax.models.vqgan import VQGAN
from cm3leon_jax.retrieval.strategy import NEIGHBOUR
from cm3leon_jax.tokens.text import TextTokenizer

COUNTS = {"train": 40, "held_out": 4}


def write_workdir(folder: Path, c: config.Experiment, seed: int = 0) -> Path:
    """What the stages before `train` leave; `seed` draws the image tokenizer."""
    folder.mkdir(parents=True)
    pieces = min(48, c.model.text_pieces)
    TextTokenizer.train([" ".join(WORDS)] * 9, folder / "text.model", pieces)
    tokenizer = VQGAN(c.image_tokenizer, rngs=nnx.Rngs(seed))
    checkpoint.save_network(folder / "image_tokenizer" / "network", tokenizer)
    made_by = {"image_tokenizer": checkpoint.fingerprint(tokenizer)}
    if c.retrieval.most:
        clip = CLIP(c.retriever, c.model.text_pieces, rngs=nnx.Rngs(2))
        checkpoint.save_network(folder / "retriever" / "network", clip)
        made_by["retriever"] = checkpoint.fingerprint(clip)
    rng = np.random.default_rng(0)
    for side, count in COUNTS.items():
        codes = rng.integers(0, c.model.image_codes, (count, c.model.image_tokens), np.int32)
        records = [
            CodedRecord(f"{side}-{i}", (f"a {WORDS[i % len(WORDS)]}", image), license="CC0-1.0")
            for i, image in enumerate(codes)
        ]
        write_shards(records, folder / "documents", side, made_by)
        if c.retrieval.most:
            _write_neighbours(folder, c, side, count, made_by["retriever"])
    checkpoint.write_json(folder / "documents" / "licenses.json", {"CC0-1.0": sum(COUNTS.values())})
    (folder / "documents" / "skipped.txt").write_text("")
    return folder


def _write_neighbours(
    folder: Path, c: config.Experiment, side: str, count: int, retriever: str
) -> None:
    rng = np.random.default_rng(count)
    found = np.zeros((count, c.retrieval.by_text + c.retrieval.by_image), NEIGHBOUR)
    found["row"] = rng.integers(0, COUNTS["train"], found.shape)
    write_mapped_part(folder / "neighbours", side, 0, 1, found)
    memory = {"retriever": retriever, "memory": {"count": COUNTS["train"]}}
    finish_mapped(folder / "neighbours", side, 1, memory)
