"""Inception features of pictures, in batches over all devices of a process.

How a picture becomes 299 x 299 is half of the definition of a FID. Both forms in use are here, to
the letter, and the one taken is part of every protocol. B pictures, Y and X pixels.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from numpy.typing import NDArray

from cm3leon_jax import config
from cm3leon_jax.checkpoint import fingerprint
from cm3leon_jax.fields import require_choice
from cm3leon_jax.models.inception import FEATURES, SIZE, Weights, features
from cm3leon_jax.sharding import batch_sharding, make_mesh

BATCH = 32  # pictures at once, or as many more as divide over the devices

RESAMPLINGS = {
    "pytorch-fid": "places of half-pixel centres, pixels / 255 * 2 - 1",
    "torch-fidelity": "places from the corner as in TensorFlow 1, (pixels - 128) / 128",
}


class Taps(NamedTuple):
    """Where each of 299 places lies between two pixels of a side."""

    low: NDArray[np.int32]
    high: NDArray[np.int32]
    share: NDArray[np.float32]  # of the high one


class FeatureNetwork:
    """Inception on all devices of this process; `name` tells it from any other in a protocol."""

    def __init__(self, weights: Weights, resampling: str) -> None:
        require_choice("resampling", resampling, tuple(RESAMPLINGS))
        mesh = make_mesh(config.Mesh(data=-1, fsdp=1, tensor=1), jax.local_devices())
        self.name = f"inception {fingerprint(dict(weights))} {resampling}"
        self._weights = jax.device_put(dict(weights), NamedSharding(mesh, PartitionSpec()))
        self._rows = batch_sharding(mesh)
        ways = mesh.size
        self._batch = -(-BATCH // ways) * ways
        self._run = jax.jit(partial(_features, resampling=resampling))

    def __call__(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [B Y X 3] -> [B 2048], whatever B is."""
        found = np.zeros((len(pictures), FEATURES), np.float32)
        for first in range(0, len(pictures), self._batch):
            rows = pictures[first : first + self._batch]
            padding = [(0, self._batch - len(rows))] + [(0, 0)] * 3
            batch = jax.device_put(np.pad(rows, padding), self._rows)
            found[first : first + len(rows)] = self._run(self._weights, batch)[: len(rows)]
        return found


def resize(pictures: jax.Array, resampling: str) -> jax.Array:
    """uint8 [B Y X 3] -> float32 [B 299 299 3] in [0, 255], bilinear, of two pixels a side."""
    x = pictures.astype(jnp.float32)
    for axis in (1, 2):
        taps = _taps(x.shape[axis], resampling)
        low, high = jnp.take(x, taps.low, axis), jnp.take(x, taps.high, axis)
        x = low + (high - low) * taps.share.reshape(-1, *[1] * (3 - axis))
    return x


def _taps(size: int, resampling: str) -> Taps:
    scale = np.float32(size / SIZE)
    places = np.arange(SIZE, dtype=np.float32)
    if resampling == "torch-fidelity":
        places = places * scale
    else:
        places = np.maximum((places + np.float32(0.5)) * scale - np.float32(0.5), 0)
    low = places.astype(np.int32)
    return Taps(low, np.minimum(low + 1, size - 1), places - low)


def _features(weights: Weights, pictures: jax.Array, resampling: str) -> jax.Array:
    pixels = resize(pictures, resampling)
    if resampling == "torch-fidelity":
        return features(weights, (pixels - 128) / 128)
    return features(weights, pixels * (2 / 255) - 1)
