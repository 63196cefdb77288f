"""Scores a bundle on held-out documents: reconstructions, text to image, image to text.

Scenes are scored exactly, by analysis by synthesis. Other sources have no ground truth for a
drawn picture; for them `nearest` is the share of pictures whose nearest real picture (least squared
error, over the whole collection) carries the caption that was asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cm3leon_jax.data.collection import Collection, Example, captioned
from cm3leon_jax.data.pictures import to_png
from cm3leon_jax.data.scene_text import parse_caption
from cm3leon_jax.data.scenes import LAYOUTS
from cm3leon_jax.decoding.generator import Generator
from cm3leon_jax.evaluation import scenes
from cm3leon_jax.models.image_codes import decode_codes, encode_pictures

GALLERY = 4096  # real pictures compared at once: bounds the memory
MEASURES = {
    "captions in training": "share of these captions that a training document has, word for word",
    "reconstruction psnr": "dB between pictures and what the image tokenizer makes of their codes",
    "codes used": "share of the codebook that these pictures need",
    "captions equal": "share of pictures whose caption the model writes word for word",
    "nearest": "share of drawn pictures whose nearest real picture has the caption asked for",
    "exact": "everything asked for is there and nothing else, background included",
    "objects": "objects right in place, shape, colour and size, of those asked for or drawn",
    "attributes": "mean of presence, shape, colour, size and background",
}


@dataclass(frozen=True)
class Evaluation:
    """Scores by name, and what they were computed from, in the order of the prompts."""

    scores: dict[str, Any]
    prompts: list[str]
    truths: NDArray[np.uint8]  # [B Y X 3]
    reconstructions: NDArray[np.uint8]
    drawn: NDArray[np.uint8]
    captions: list[str]


def evaluate(
    generator: Generator,
    collection: Collection,
    side: Literal["held_out", "train"],
    count: int,
    seed: int = 0,
    documents: int | None = None,
) -> Evaluation:
    """Scores `count` captioned pictures, evenly spaced over a side, one sample each, with the
    bundle's own sampling settings and `documents` retrieved ones in front. Documents too long for
    training are left out."""
    if count < 1:
        raise ValueError(f"count={count}: score at least 1 document")
    examples = collection.held_out if side == "held_out" else collection.train
    prompts, truths = captioned([e for e in examples if _fits(e, generator)])
    if not prompts:
        raise ValueError(f"{side}: no document with a text and a picture fits data.row_length")
    spaced = np.linspace(0, len(prompts) - 1, min(count, len(prompts))).round().astype(int)
    prompts, truths = [prompts[i] for i in spaced], truths[spaced]
    codes = encode_pictures(generator.image_tokenizer, truths)
    again = decode_codes(generator.image_tokenizer, codes)
    images = generator.images(prompts, documents=documents, seed=seed)
    drawn = np.stack([np.asarray(image) for image in images])
    captions = generator.caption(list(truths), documents=documents, seed=seed)
    assert isinstance(captions, list)
    known = {text for example in collection.train for text in example.texts}
    scores: dict[str, Any] = {
        "count": len(prompts),
        "seed": seed,
        "captions_in_training": float(np.mean([prompt in known for prompt in prompts])),
        "reconstruction_psnr": psnr(truths, again),
        "codes_used": len(np.unique(codes)) / generator.experiment.model.image_codes,
        "captions_equal": float(np.mean([a == b for a, b in zip(captions, prompts)])),
    }
    if generator.experiment.data.source == "scenes":
        scores |= score_scenes(prompts, again, drawn, captions)
    else:
        real = captioned([*collection.train, *collection.held_out])
        scores["nearest_reconstruction"] = nearest(again, prompts, *real)
        scores["nearest"] = nearest(drawn, prompts, *real)
    return Evaluation(scores, prompts, truths, again, drawn, captions)


def _fits(example: Example, generator: Generator) -> bool:
    c = generator.experiment
    places = sum(len(generator.text.encode(text)) + 1 for text in example.texts)
    places += (c.model.image_tokens + 1) * len(example.images)
    return places <= c.data.row_length


def score_scenes(
    prompts: Sequence[str],
    reconstructions: NDArray[np.uint8],
    drawn: NDArray[np.uint8],
    captions: Sequence[str],
) -> dict[str, Any]:
    """Exact scores against the scenes that the prompts describe."""
    grids = {layout.size: grid for grid, layout in LAYOUTS.items()}
    found = [parse_caption(prompt, grids[drawn.shape[1]]) for prompt in prompts]
    wanted = [scene for scene in found if scene is not None]
    if len(wanted) < len(found):
        raise ValueError("a caption is not one of scenes; was the bundle trained on scenes?")
    return {
        "reconstructions": scenes.score_images(reconstructions, wanted),
        "images": scenes.score_images(drawn, wanted),
        "captions": scenes.score_captions(captions, wanted),
    }


def write_images(evaluation: Evaluation, folder: Path) -> None:
    """Writes real/, reconstructed/ and drawn/ with a PNG a document, as FID and rFID tools want."""
    parts = {
        "real": evaluation.truths,
        "reconstructed": evaluation.reconstructions,
        "drawn": evaluation.drawn,
    }
    for name, images in parts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(images):
            (folder / name / f"{number:05}.png").write_bytes(to_png(image))


def nearest(
    pictures: NDArray[np.uint8],
    prompts: Sequence[str],
    captions: Sequence[str],
    real: NDArray[np.uint8],
) -> float:
    """Share of `pictures` whose nearest of the `real` ones has the caption of the prompt."""
    queries = pictures.reshape(len(pictures), -1).astype(np.float32)
    best, found = np.full(len(queries), np.inf), np.zeros(len(queries), int)
    for first in range(0, len(real), GALLERY):
        gallery = real[first : first + GALLERY].reshape(-1, queries.shape[1]).astype(np.float32)
        distance = np.square(gallery).sum(1) - 2 * queries @ gallery.T
        closer = distance.min(1) < best
        best = np.where(closer, distance.min(1), best)
        found = np.where(closer, first + distance.argmin(1), found)
    return float(np.mean([captions[i] == prompt for i, prompt in zip(found, prompts)]))


def psnr(images: NDArray[np.uint8], others: NDArray[np.uint8]) -> float:
    """Mean over pictures of the peak signal-to-noise ratio in dB."""
    errors = np.square(images.astype(np.float32) - others).mean(axis=(1, 2, 3))
    return float(np.mean(10 * np.log10(255**2 / np.maximum(errors, 1e-2))))
