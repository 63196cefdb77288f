"""Prepared work directories, declared as the SeqIO tasks "scenes" and "emoji", and read again."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SMALL

from cm3leon_jax import checkpoint, config
from cm3leon_jax.data.seqio_features import FEATURES
from cm3leon_jax.data.shards import CodedRecord, write_shards
from cm3leon_jax.data.tasks import add_task
from cm3leon_jax.mapped import finish_mapped, write_mapped_part
from cm3leon_jax.retrieval.strategy import NEIGHBOUR
from cm3leon_jax.tokens.objective import restore
from cm3leon_jax.tokens.packing import Example
from cm3leon_jax.tokens.text import TextTokenizer
from cm3leon_jax.tokens.vocabulary import Vocabulary

WORDS = ("a red cat", "two dogs", "the sea", "a green tree on a hill", "one bird", "é", "sun")
ROW = 64
LENGTHS = dict.fromkeys(FEATURES, ROW)
CHANGES = {
    "data.row_length": ROW,
    "objective.rate": 2.0,
    "objective.retrieved_weight": 0.1,
    "objective.sentinel_weight": 0.0,
    "retrieval.most": 2,
}


def prepare(folder: Path, count: int = 30, made_by: str = "one", **changes: Any) -> Path:
    """A prepared work directory: captioned pictures with neighbours, 5 of them held out."""
    c = config.replace(config.Experiment(), SMALL | CHANGES | changes)
    rng = np.random.default_rng(count)
    checkpoint.write_experiment(folder, c)
    TextTokenizer.train(WORDS[:5], folder / "text.model", 40)
    for split, size in (("train", count), ("held_out", 5)):
        codes = rng.integers(0, c.model.image_codes, (size, c.model.image_tokens), np.int32)
        records = [
            CodedRecord(f"{split}-{i}", (f"{WORDS[i % len(WORDS)]} {i}", image))
            for i, image in enumerate(codes)
        ]
        write_shards(records, folder / "documents", split, {"image_tokenizer": made_by})
        found = np.zeros((size, 4), NEIGHBOUR)
        found["row"] = rng.integers(0, count, (size, 4))
        write_mapped_part(folder / "neighbours", split, 0, 1, found)
        finish_mapped(folder / "neighbours", split, 1, {})
    return folder


def prepare_both(runs: Path) -> Path:
    """Two prepared work directories, of 30 and of 12 documents to train on."""
    prepare(runs / "quickstart")
    prepare(runs / "emoji", count=12)
    (runs / "declared.py").write_text("# declared by the tests themselves\n")
    return runs


def declare(runs: Path, patch: pytest.MonkeyPatch) -> Path:
    """Declares both for whom asks the module `declared`."""
    patch.syspath_prepend(runs)
    add_task("scenes", runs / "quickstart")
    add_task("emoji", runs / "emoji", template="image_first")
    return runs


def read(name: str, split: str = "train", **options: Any) -> list[Example]:
    """The examples of a task in order, put together again from SeqIO's features."""
    import seqio

    task = seqio.get_mixture_or_task(name)
    dataset = task.get_dataset(LENGTHS, split, **{"shuffle": False, "seed": 0, **options})
    return [
        Example(
            np.append(features["tokens"][:1], features["targets"]),
            np.append(np.float32(1), decode(features["weight_codes"])),
            np.append(features["places"] - 2, -1),  # no document ends with a code
        )
        for features in dataset.as_numpy_iterator()
    ]


def decode(codes: np.ndarray) -> np.ndarray:
    return (codes - 1).view(np.float32)


def documents_of(examples: Iterable[Example], folder: Path) -> list[list[int]]:
    vocabulary = Vocabulary.of(checkpoint.read_experiment(folder).model)
    return [restore(example.ids, vocabulary).tolist() for example in examples]
