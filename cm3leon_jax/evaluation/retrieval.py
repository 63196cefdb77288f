"""How often the right document is found: recall at k of paired vectors. NumPy only."""

import numpy as np
from numpy.typing import NDArray

ROUNDING = 1e-6  # scores nearer than this are one score


def recall(
    images: NDArray[np.floating], texts: NDArray[np.floating], at: int = 1
) -> dict[str, float]:
    """Share of rows whose partner is among the `at` best of all N, by direction.

    images and texts are unit vectors [N E]; row i of the one belongs to row i of the other. Where
    several candidates score like the partner, it counts with the probability that a random order
    puts it among the first: of a network that maps all to one vector the recall is at / N.
    """
    if not (images.shape == texts.shape and 1 <= at <= len(images)):
        raise ValueError(
            f"at={at}, images {images.shape}, texts {texts.shape}: give as many images as texts"
            " and 1 <= at <= their number"
        )
    scores = images.astype(np.float64) @ texts.astype(np.float64).T
    return {"image_to_text": _found(scores, at), "text_to_image": _found(scores.T, at)}


def _found(scores: NDArray[np.float64], at: int) -> float:
    """scores [N N], queries in rows."""
    own = np.diagonal(scores)[:, None]
    better = (scores > own + ROUNDING).sum(axis=1)
    equal = (np.abs(scores - own) <= ROUNDING).sum(axis=1)  # the partner itself among them
    return float(((at - better) / equal).clip(0, 1).mean())
