"""Held-out emoji enlarged from 32 pixels a side to 128, by the upscaler and by two filters.

    cm3leon train --stage upscaler --config tiny_emoji --workdir runs/emoji
    make bench ARGS=upscale

CM3LEON_UPSCALER names another folder with `config.json` and `network/`. The small pictures are the
large ones after Pillow's antialiased bicubic resize, and all get the same. Gains are differences on
one and the same picture. Many held-out emoji have a sibling of another skin tone in training; the
last rows leave those out. docs/upscaled.png shows eight of the others, evenly spaced.
"""

import os
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cm3leon_jax.config import Mesh
from cm3leon_jax.data import emoji
from cm3leon_jax.data.degradation import shrink
from cm3leon_jax.data.networks import open_upscaler
from cm3leon_jax.data.pictures import grid
from cm3leon_jax.data.records import is_held_out
from cm3leon_jax.evaluation.run import psnr
from cm3leon_jax.evaluation.scenes import bootstrap
from cm3leon_jax.models.upscaler import upscale
from cm3leon_jax.sharding import make_mesh

UPSCALER = os.environ.get("CM3LEON_UPSCALER", "runs/emoji/upscaler")
SIZE, SCALE = 128, 4
SHOWN = 8
PICTURE = Path("docs/upscaled.png")

Pixels = NDArray[np.uint8]


def measure() -> str:
    """A Markdown table; also writes the picture."""
    network = open_upscaler(UPSCALER, make_mesh(Mesh(fsdp=1), jax.devices()[:1]))
    truths, is_new = read_emoji()
    ways: dict[str, Callable[[Pixels], Pixels]] = {
        "nearest": filtered(Image.Resampling.NEAREST),
        "bicubic": filtered(Image.Resampling.BICUBIC),
        "Lanczos": filtered(Image.Resampling.LANCZOS),
        "upscaler": lambda picture: upscale(network, picture),
    }
    small = [shrink(truth, SCALE) for truth in truths]
    made = {name: [way(picture) for picture in small] for name, way in ways.items()}
    shown = np.linspace(0, is_new.sum() - 1, SHOWN).round().astype(int)
    rows = [made["nearest"], made["bicubic"], made["upscaler"], truths]
    chosen = [row[i] for row in rows for i in np.flatnonzero(is_new)[shown]]
    Image.fromarray(grid(chosen, SHOWN)).save(PICTURE, optimize=True)
    scores = {
        name: np.array([psnr(a[None], b[None]) for a, b in zip(found, truths)])
        for name, found in made.items()
    }
    lines = [
        "| held-out emoji | enlarged by | PSNR, dB | above bicubic, dB |",
        "|---|---|---:|---:|",
    ]
    for group, chosen in (("all", np.ones_like(is_new)), ("no sibling in training", is_new)):
        for name in ("bicubic", "Lanczos", "upscaler"):
            values, gains = scores[name][chosen], (scores[name] - scores["bicubic"])[chosen]
            gain = "" if name == "bicubic" else interval(gains)
            lines.append(f"| {len(values)}, {group} | {name} | {interval(values)} | {gain} |")
    return "\n".join(lines)


def read_emoji() -> tuple[list[Pixels], NDArray[np.bool_]]:
    """The held-out pictures, and which of them have no sibling of another skin tone in training."""
    truths, families, known = [], [], set()
    for record in emoji.records(SIZE):
        codes = record.id.removeprefix("emoji-").split("-")
        family = tuple(code for code in codes if chr(int(code, 16)) not in emoji.TONES)
        if is_held_out(record.group):
            truths.append(record.segments[1])
            families.append(family)
        else:
            known.add(family)
    return truths, np.array([family not in known for family in families])


def filtered(by: Image.Resampling) -> Callable[[Pixels], Pixels]:
    return lambda picture: np.array(Image.fromarray(picture).resize((SIZE, SIZE), by))


def interval(values: NDArray[np.float64]) -> str:
    """A mean with its 95 % interval."""
    low, high = bootstrap(values)
    return f"{values.mean():.2f} ({low:.2f} to {high:.2f})"
