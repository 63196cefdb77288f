"""The loader: from shards on disk to packed rows, against what one TPU host reads.

Rows of 4,096 places; pairs of a caption of about 12 words and an image of 1,024 codes; two
neighbours in front of each. A v5p host needs about 22,000 tokens/s of its loader.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.tiny import median_seconds
from cm3leon_jax import config
from cm3leon_jax.data.examples import Examples
from cm3leon_jax.data.loader import token_batches
from cm3leon_jax.data.shards import CodedRecord, Shards, write_shards
from cm3leon_jax.tokens.objective import rng_for, rotate
from cm3leon_jax.tokens.packing import fill_row
from cm3leon_jax.tokens.text import TextTokenizer
from cm3leon_jax.tokens.vocabulary import Vocabulary

NEEDED = 22_000  # tokens/s
COUNT = 2000  # documents
SECONDS = 5.0  # that each stream is measured
SETTINGS = {"retrieval.least": 2, "retrieval.most": 2, "train.batch": 16}
NEIGHBOUR = np.dtype([("row", "<i8"), ("score", "<f2"), ("by", "u1")])


def measure() -> str:
    """A Markdown table."""
    c = config.replace(config.Experiment(), SETTINGS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        captions = write_documents(c, folder)
        text = TextTokenizer.train(captions, folder / "text.model", 8192)
        neighbours = np.zeros((COUNT, 4), NEIGHBOUR)
        neighbours["row"] = np.random.default_rng(1).integers(0, COUNT, (COUNT, 4))
        documents = Shards(folder, "train")
        examples = Examples(documents, text, c, documents, neighbours)
        rows = pieces(c, examples, documents, text, captions)
        for workers in (0, 1, 2):
            at = config.replace(c, {"data.workers": workers})
            rate = stream_rate(at, examples, text)
            rows.append((f"loader, {workers} workers", f"{rate:,.0f}", f"{rate / NEEDED:.0f}"))
    lines = ["| what | tokens/s | times a v5p host's need |", "|---|---:|---:|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def pieces(
    c: config.Experiment,
    examples: Examples,
    documents: Shards,
    text: TextTokenizer,
    captions: list[str],
) -> list[tuple[str, str, str]]:
    """What each step of making a row could do alone, on one core, in tokens of the row."""
    vocabulary, place = Vocabulary.of(c.model), iter(range(10**9))
    rng = rng_for(0, 0, 0)
    ids = examples.document(0, rng).to_ids(vocabulary)
    made, longest = examples.example(0, rng), c.data.row_length + 1
    number = lambda: next(place) % COUNT  # noqa: E731
    steps: list[tuple[str, Callable[[], object]]] = [
        ("read three records", lambda: [documents[number()] for _ in range(3)]),
        ("encode three captions", lambda: [text.encode(captions[number()]) for _ in range(3)]),
        ("join: read, encode, draw", lambda: examples.document(number(), rng)),
        ("rotate", lambda: rotate(ids, vocabulary, rng, c.objective, longest)),
        ("pack", lambda: fill_row([made], c.data.row_length)),
        ("example: join, rotate, weigh", lambda: examples.example(number(), rng)),
    ]
    return [(name, f"{made.size / median_seconds(run, 300):,.0f}", "") for name, run in steps]


def stream_rate(c: config.Experiment, examples: Examples, text: TextTokenizer) -> float:
    """Tokens per second of the steady stream."""
    loader = iter(token_batches([(examples, 1.0)], text, c))
    for _ in range(4):  # until the workers are up and their buffers full
        next(loader)
    tokens, start = 0, time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        tokens += np.count_nonzero(next(loader)["segments"])
    seconds = time.perf_counter() - start
    loader.close()
    return tokens / seconds


def write_documents(c: config.Experiment, folder: Path) -> list[str]:
    """Writes random pairs and returns their captions."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("aeionrstlmdk"), rng.integers(2, 9))) for _ in range(4000)]
    records = []
    for i in range(COUNT):
        caption = " ".join(rng.choice(words, rng.integers(8, 17)))
        codes = rng.integers(0, c.model.image_codes, c.model.image_tokens, np.int32)
        records.append(CodedRecord(f"{i}", (caption, codes)))
    write_shards(records, folder, "train")
    return [record.texts[0] for record in records]
