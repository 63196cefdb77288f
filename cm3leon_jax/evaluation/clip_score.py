"""CLIP score and retrieval precision: whether drawn pictures belong to their captions.

CLIP score is 100 max(cos, 0) (arXiv 2104.08718 without its weight). B pictures, E embedding.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cm3leon_jax.checkpoint import fingerprint
from cm3leon_jax.decoding.generator import Generator
from cm3leon_jax.fields import require
from cm3leon_jax.models.clip import embed_pictures, embed_texts


class Encoders(NamedTuple):
    """Any CLIP: unit vectors [B E] of pictures uint8 [B Y X 3] and of B texts."""

    name: str  # tells one network from another in a protocol
    pictures: Callable[[NDArray[np.uint8]], NDArray[np.float32]]
    texts: Callable[[Sequence[str]], NDArray[np.float32]]


def bundle_encoders(generator: Generator) -> Encoders | None:
    """The CLIP that ranks a bundle's pictures; None where it has none."""
    clip, text = generator.clip, generator.clip_tokenizer
    if clip is None:
        return None
    return Encoders(
        f"bundle {fingerprint(clip)}",
        lambda pictures: embed_pictures(clip, pictures),
        lambda texts: embed_texts(clip, [text.encode(each) for each in texts]),
    )


def clip_score(pictures: NDArray[np.float32], texts: NDArray[np.float32]) -> float:
    """Mean over pairs of unit vectors [B E]."""
    return float(100 * np.maximum(np.einsum("be,be->b", pictures, texts), 0).mean())


def retrieval_precision(
    pictures: NDArray[np.float32], texts: NDArray[np.float32], among: int = 100, seed: int = 0
) -> float:
    """Share of pictures whose own text is nearer than `among` - 1 drawn at random from the others.

    Texts equal to its own count for nothing. With fewer texts than `among` there are all of them.
    Raises ValueError for a single pair.
    """
    count = len(texts)
    require(count > 1, "pairs", count, "use 2 or more")
    rng, drawn = np.random.default_rng(seed), min(among, count) - 1
    right = 0
    for i, picture in enumerate(pictures):
        others = rng.choice(count - 1, drawn, replace=False)
        rivals = texts[others + (others >= i)]
        rivals = rivals[(rivals != texts[i]).any(axis=1)]
        right += bool((rivals @ picture < texts[i] @ picture).all())
    return right / len(pictures)
