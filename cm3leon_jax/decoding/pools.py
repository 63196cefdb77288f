"""Pools of candidate pictures: how each is drawn, and which are the best by CLIP (paper, 3.2)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cm3leon_jax.decoding.drawing import Drawer, contrast_by, guide_by
from cm3leon_jax.decoding.logits import Guidance, Sampling
from cm3leon_jax.fields import require
from cm3leon_jax.models.clip import CLIP, embed_pictures, embed_texts


class Way(NamedTuple):
    """`each` candidates of each prompt are drawn so."""

    sampling: Sampling
    guidance: Guidance
    each: int


def ways(
    drawer: Drawer,
    count: int,
    mixed: bool,
    guidance: float | None,
    guidance_interval: tuple[float, float] | None,
    contrastive: int | None,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
) -> list[Way]:
    """How `count` pictures are drawn: guided, by CD-K, or half of them so and half so.

    CD-K has a cut of its own, so top_p and top_k hold for it only where they are given, in a mixed
    pool never. Raises ValueError naming the argument.
    """
    scale = drawer.defaults.guidance if guidance is None else guidance
    by_text = guide_by(scale, guidance_interval, drawer.model.config.image_tokens)
    guided = drawer.image_sampling(temperature, top_p, top_k), by_text
    if mixed:
        require(count >= 2, "candidates", count, "use 2 or more with mixed=True")
        require(contrastive is not None, "contrastive", contrastive, "use k >= 1 with mixed=True")
    if contrastive is None:
        return [Way(*guided, count)]
    by_contrast = contrast_by(contrastive)
    if mixed:
        uncut = drawer.image_sampling(temperature, 1.0, 0)
        return [Way(*guided, count - count // 2), Way(uncut, by_contrast, count // 2)]
    rule = "use it or contrastive, or both with mixed=True"
    require(guidance is None, "guidance", guidance, rule)
    require(guidance_interval is None, "guidance_interval", guidance_interval, rule)
    cut = drawer.image_sampling(temperature, 1.0 if top_p is None else top_p, top_k or 0)
    return [Way(cut, by_contrast, count)]


def score(
    clip: CLIP, texts: Sequence[Sequence[int]], pixels: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """The cosine of each text, its piece ids, and its pictures [P m Y X 3]: [P m]."""
    by_text = embed_texts(clip, texts)
    by_picture = embed_pictures(clip, pixels.reshape(-1, *pixels.shape[2:]))
    return np.einsum("pe,pme->pm", by_text, by_picture.reshape(*pixels.shape[:2], -1))


def best(scores: NDArray[np.float32], n: int) -> NDArray[np.int64]:
    """The numbers of the n best candidates of each prompt, best first: [P m] -> [P n]"""
    return np.argsort(-scores, axis=1, kind="stable")[:, :n]
