"""Folders of pictures and of lines about them, written and read."""

import json
from pathlib import Path

import numpy as np

from cm3leon_jax import config
from cm3leon_jax.data import sources
from cm3leon_jax.data.pictures import to_png
from cm3leon_jax.data.records import Skipped

PICTURE = to_png(np.zeros((4, 4, 3), np.uint8))
SIZE = 32  # pixels of procedural pictures


def write_pictures(root: Path) -> Path:
    """Two pictures, in a folder of their own."""
    (root / "cats").mkdir(parents=True)
    for name in ("1.png", "2.png"):
        (root / "cats" / name).write_bytes(PICTURE)
    return root


def write_lines(root, *entries, name="captions.jsonl"):
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    (root / name).write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogateescape")


def write_csv(root, *lines, name="captions.csv"):
    (root / name).write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))


def read(source, max_bad_fraction=0.999, **values):
    """All records of a source, part after part, and what was skipped."""
    data = config.Data(source=str(source), max_bad_fraction=max_bad_fraction, **values)
    skipped = Skipped()
    parts = sources.plan(data, SIZE)
    records = [record for part in parts for record in sources.read(part, data, SIZE, skipped)]
    skipped.check(max_bad_fraction)
    return records, skipped
