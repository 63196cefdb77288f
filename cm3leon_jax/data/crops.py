"""Crops of large pictures beside the small pictures that they became: what the upscaler reads."""

import itertools
from collections.abc import Generator, Sequence

import numpy as np
from numpy.typing import NDArray

from cm3leon_jax.config import Upscaler
from cm3leon_jax.data.degradation import degrade, shrink
from cm3leon_jax.data.loader import Stream, permutation
from cm3leon_jax.fields import require
from cm3leon_jax.tokens.objective import rng_for
from cm3leon_jax.tokens.packing import Batch

MARGIN = 32  # pixels around a crop that become small with it, so that it has no edges of its own


def crop_batches(
    pictures: Sequence[NDArray[np.uint8]], c: Upscaler, rows: Sequence[int] | None = None
) -> Stream:
    """Batches {'images': uint8 [B y x 3], 'targets': uint8 [B Y X 3]} of squares [Y X 3].

    Every epoch has each picture once, cropped, turned and degraded anew: a function of train.seed,
    epoch and picture. The position is a count of pictures; rows as in `loader.image_batches`.
    """
    require(len(pictures) > 0, "pictures", 0, "there are none to train on; check data.source")
    least, rule = min(min(p.shape[:2]) for p in pictures), "must fit into the pictures, {} pixels"
    require(c.crop <= least, "upscaler.crop", c.crop, rule.format(least))
    batch, seed, count = c.train.batch, c.train.seed, len(pictures)
    mine = np.arange(batch) if rows is None else np.array(rows)

    def make(place: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        epoch, turn = divmod(place, count)
        index = int(permutation(seed, epoch, count)[turn])
        return draw_pair(pictures[index], c, rng_for(seed, epoch, index))

    def read(position: list[int]) -> Generator[tuple[Batch, list[int]]]:
        for start in itertools.count(position[0], batch):
            small, large = zip(*map(make, (start + mine).tolist()))
            yield {"images": np.stack(small), "targets": np.stack(large)}, [start + batch]

    return Stream(read)


def draw_pair(
    picture: NDArray[np.uint8], c: Upscaler, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A crop, [crop/scale crop/scale 3] and [crop crop 3], at a random place of the picture and in
    one of a square's eight positions."""
    scale, size = c.scale, c.crop
    starts = [scale * int(rng.integers((side - size) // scale + 1)) for side in picture.shape[:2]]
    (top, bottom), (left, right) = (
        (max(0, start - MARGIN), min(side // scale * scale, start + size + MARGIN))
        for start, side in zip(starts, picture.shape)
    )
    window = picture[top:bottom, left:right]
    orders = {"none": 0, "first_order": 1, "second_order": 2}[c.degradation]
    small = degrade(window, scale, orders, rng) if orders else shrink(window, scale)
    y, x = starts[0] - top, starts[1] - left
    pair = small[y // scale :, x // scale :][: size // scale, : size // scale], window[y:, x:]
    turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
    turned = [np.rot90(part[:size, :size], turns) for part in pair]
    first, second = (part[:, ::-1] if mirrored else part for part in turned)
    return first, second
