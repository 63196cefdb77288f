"""Candidate pools on a quickstart's bundle: guidance, CD-K, and half of each (paper, figure 6).

`make bench ARGS=pools` reads runs/quickstart/bundle, or the folder that CM3LEON_BUNDLE names. Each
held-out caption has a pool of 1 to 16 candidates at temperature 1, of which the bundle's CLIP
chooses one. Guided ones have top-p 0.9; half and half is 1.5 and CD-K 4. The table has the share of
exact pictures, and beside it that of captions whose pool has any; the curves go to docs/pools.svg.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from cm3leon_jax.decoding.generator import Generator, load
from cm3leon_jax.evaluation import report, scenes
from cm3leon_jax.evaluation.scene_tasks import held_out_records

BUNDLE = os.environ.get("CM3LEON_BUNDLE", "runs/quickstart/bundle")
COUNT = 128  # held-out captions
SVG = "http://www.w3.org/2000/svg"
POOLS = (1, 2, 4, 8, 16)
WAYS: dict[str, dict[str, Any]] = {
    "guided 1": {"guidance": 1.0, "top_p": 0.9},
    "guided 1.5": {"guidance": 1.5, "top_p": 0.9},
    "guided 3": {"guidance": 3.0, "top_p": 0.9},
    "CD-K 4": {"contrastive": 4},
    "CD-K 16": {"contrastive": 16},
    "half, half": {
        "guidance": 1.5,
        "top_p": 0.9,
        "contrastive": 4,
        "mixed": True,
    },
}


def measure() -> str:
    """A Markdown table: rows are ways to draw, columns sizes of the pool."""
    generator = load(BUNDLE)
    c = generator.experiment
    prompts = [str(r.segments[0]) for r in held_out_records(c.data, 2, "plain", COUNT)]
    lines: dict[str, list[tuple[int, float]]] = {}
    rows = ["| exact | " + " | ".join(map(str, POOLS)) + " |", "|---|" + "---:|" * len(POOLS)]
    for name, way in WAYS.items():
        cells = []
        for size in POOLS[way.get("mixed", False) :]:
            chosen, possible = exact(generator, prompts, size, way)
            lines.setdefault(name, []).append((size, chosen))
            cells.append(f"{chosen:.3f} ({possible:.3f})")
        rows.append(f"| {name} | " + " | ".join(["", *cells][-len(POOLS) :]) + " |")
    drawn = report.curves("Share of exact pictures by candidates", lines)
    picture = drawn[drawn.index("<svg") :].replace("<svg", f'<svg xmlns="{SVG}"', 1)
    report.write_text(Path("docs/pools.svg"), picture)
    return "\n".join(rows)


def exact(
    generator: Generator, prompts: list[str], size: int, way: dict[str, Any]
) -> tuple[float, float]:
    """Share of exact pictures that CLIP chose, and of pools that have one."""
    ranked = generator.images(
        prompts, size, candidates=size, temperature=1.0, return_scores=True, **way
    )
    pixels = np.stack([np.asarray(picture) for picture, _ in ranked])
    truth = [text for text in prompts for _ in range(size)]
    wanted = [scene for text in truth if (scene := scenes.parse_caption(text))]
    found = scenes.compare(scenes.read_images(pixels), scenes.read_scenes(wanted))["exact"]
    pools = found.reshape(len(prompts), size)  # best by CLIP first
    return float(pools[:, 0].mean()), float(pools.max(1).mean())
