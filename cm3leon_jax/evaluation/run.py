"""Scores a bundle on held-out documents: reconstructions, text to image, image to text.

Scenes are scored exactly, by analysis by synthesis. Other sources have no ground truth for a
drawn picture; for them `nearest` is the share of pictures whose nearest real picture (least squared
error, over the whole collection) carries the caption that was asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cm3leon_jax.data.prepare import Collection, Example, captioned
from cm3leon_jax.data.scene_text import parse_caption
from cm3leon_jax.decoding.generator import Generator
from cm3leon_jax.evaluation import scenes
from cm3leon_jax.models.image_codes import decode_codes, encode_pictures


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
    examples: Sequence[Example],
    collection: Collection,
    count: int,
    seed: int = 0,
) -> Evaluation:
    """Scores `count` examples with the bundle's own sampling settings, one sample each."""
    prompts, truths = captioned(examples, count)
    codes = encode_pictures(generator.image_tokenizer, truths)
    again = decode_codes(generator.image_tokenizer, codes)
    drawn = np.stack([np.asarray(image) for image in generator.images(prompts, seed=seed)])
    captions = generator.caption(list(truths), seed=seed)
    assert isinstance(captions, list)
    scores: dict[str, Any] = {
        "count": len(prompts),
        "seed": seed,
        "reconstruction_psnr": psnr(truths, again),
        "codes_used": len(np.unique(codes)) / generator.experiment.model.image_codes,
        "captions_equal": float(np.mean([a == b for a, b in zip(captions, prompts)])),
    }
    if generator.experiment.data.source == "scenes":
        grid = 2 if truths.shape[1] == 32 else 3
        wanted = [parse_caption(prompt, grid) for prompt in prompts]
        known = [scene for scene in wanted if scene is not None]
        if len(known) < len(wanted):
            raise ValueError("a caption of scenes cannot be parsed; was the bundle trained on it?")
        scores["reconstructions"] = scenes.score_images(again, known)
        scores["images"] = scenes.score_images(drawn, known)
        scores["captions"] = scenes.score_captions(captions, known)
    else:
        real = captioned([*collection.train, *collection.held_out], len(collection.train) * 2)
        scores["nearest_reconstruction"] = nearest(again, prompts, *real)
        scores["nearest"] = nearest(drawn, prompts, *real)
    return Evaluation(scores, prompts, truths, again, drawn, captions)


def nearest(
    pictures: NDArray[np.uint8],
    prompts: Sequence[str],
    captions: Sequence[str],
    real: NDArray[np.uint8],
) -> float:
    """Share of `pictures` whose nearest of the `real` ones has the caption of the prompt."""
    gallery = real.reshape(len(real), -1).astype(np.float32)
    queries = pictures.reshape(len(pictures), -1).astype(np.float32)
    distance = (gallery**2).sum(1) - 2 * queries @ gallery.T
    found = distance.argmin(1)
    return float(np.mean([captions[i] == prompt for i, prompt in zip(found, prompts)]))


def psnr(images: NDArray[np.uint8], others: NDArray[np.uint8]) -> float:
    """Mean over pictures of the peak signal-to-noise ratio in dB."""
    errors = np.square(images.astype(np.float32) - others).mean(axis=(1, 2, 3))
    return float(np.mean(10 * np.log10(255**2 / np.maximum(errors, 1e-2))))
