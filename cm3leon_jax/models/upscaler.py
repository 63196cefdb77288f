"""The super-resolution stage: RRDBNet, the generator of ESRGAN (arXiv 1809.00219) and Real-ESRGAN
(arXiv 2107.10833), and how it enlarges a picture of any size in tiles.

A trunk of residual-in-residual dense blocks at a low resolution, then two doublings by the nearest
neighbour. Scale 2 reads groups of pixels as channels first, so that the trunk is the same.
B batch, Y and X pixels, C channels.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import NDArray

from cm3leon_jax.config import Upscaler
from cm3leon_jax.models.vqgan import draw_kernels

COLOURS = 3
SHRINK = {4: 1, 2: 2}  # pixels per side that become channels, by scale
RESIDUAL = 0.2  # what is added of a block's and a group's output
SMALL = 0.1  # of the first weights of the blocks (ESRGAN, section 3.1)

TILE = 144  # pixels per side that are enlarged at once: 256 are two of them
OVERLAP = 32  # pixels that two tiles share at least


class Conv(nnx.Module):
    """A 3 x 3 convolution that keeps the size; weights may have leading axes to scan over."""

    def __init__(self, inputs: int, outputs: int, *leading: int):
        self.kernel = nnx.Param(jnp.zeros((*leading, 3, 3, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros((*leading, outputs)))

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...].astype(x.dtype)
        dimensions = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dimensions)
        return y + self.bias[...].astype(x.dtype)


class Blocks(nnx.Module):
    """All blocks, stacked: three dense groups of five convolutions each, every one seeing all
    earlier outputs of its group."""

    def __init__(self, c: Upscaler):
        wide, more, deep = c.channels, c.growth, (c.blocks, 3)
        self.convs = nnx.List(
            [Conv(wide + i * more, more if i < 4 else wide, *deep) for i in range(5)]
        )

    def run(self, x: jax.Array, unroll: bool) -> jax.Array:
        def group(x: jax.Array, layer: Blocks) -> tuple[jax.Array, None]:
            seen = x
            for conv in [*layer.convs][:4]:
                seen = jnp.concatenate([seen, leaky(conv(seen))], axis=-1)
            return x + RESIDUAL * layer.convs[4](seen), None

        def block(x: jax.Array, layer: Blocks) -> tuple[jax.Array, None]:
            return x + RESIDUAL * jax.lax.scan(group, x, layer, unroll=unroll)[0], None

        return jax.lax.scan(block, x, self, unroll=unroll)[0]


class RRDBNet(nnx.Module):
    """Pictures to larger ones. Untrained it nearly repeats pixels, its first three channels being
    the picture: of a short training nothing goes into learning what a picture is."""

    def __init__(self, c: Upscaler, *, rngs: nnx.Rngs):
        self.config, wide, side = c, c.channels, SHRINK[c.scale]
        self.first = Conv(COLOURS * side**2, wide)
        self.blocks = Blocks(c)
        self.trunk, self.up1, self.up2, self.high = (Conv(wide, wide) for _ in range(4))
        self.last = Conv(wide, COLOURS)
        draw_kernels(self, rngs.params())
        for conv in (*self.blocks.convs, self.last):
            conv.kernel[...] *= SMALL
        self.trunk.kernel[..., :COLOURS] = 0.0
        for conv in (self.first, self.up1, self.up2, self.high):
            conv.kernel[..., :COLOURS] = 0.0
        for conv in (self.up1, self.up2, self.high, self.last):
            conv.kernel[1, 1, :COLOURS, :COLOURS] += jnp.eye(COLOURS)
        means = jnp.repeat(jnp.eye(COLOURS), side**2, axis=0) / side**2
        self.first.kernel[1, 1, :, :COLOURS] = means

    def __call__(self, images: jax.Array, unroll: bool = False) -> jax.Array:
        """[B Y X 3] in [0, 1] -> [B Y*scale X*scale 3], unclipped; 4 / scale divides Y, X.

        unroll: without loops, whose gradients take XLA 60 times as long on a CPU.
        """
        x = self.first(shrink(images, SHRINK[self.config.scale]))
        x = x + self.trunk(self.blocks.run(x, unroll))
        for conv in (self.up1, self.up2):
            x = leaky(conv(jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)))
        return self.last(leaky(self.high(x)))


def shrink(images: jax.Array, side: int) -> jax.Array:
    """[B Y X C] -> [B Y/side X/side C*side*side]; channels by colour, then row, then column."""
    b, y, x, c = images.shape
    parts = images.reshape(b, y // side, side, x // side, side, c)
    return parts.transpose(0, 1, 3, 5, 2, 4).reshape(b, y // side, x // side, c * side**2)


def leaky(x: jax.Array) -> jax.Array:
    return jax.nn.leaky_relu(x, 0.2)


def upscale(
    network: RRDBNet, picture: NDArray[np.uint8], tile: int = TILE, overlap: int = OVERLAP
) -> NDArray[np.uint8]:
    """[Y X 3] -> [Y*scale X*scale 3] of any size, in tiles whose size bounds the device's memory.

    Neighbours share `overlap` pixels or more. There they are blended, and a tile's outer quarter of
    it, where it misses what lies beyond, counts nothing: where the network sees no further than
    that the result is that of one tile. tile and overlap are multiples of 4.
    """
    scale, (y, x, _) = network.config.scale, picture.shape
    side = SHRINK[scale]
    padded = np.pad(picture, ((0, -y % side), (0, -x % side), (0, 0)), "edge")
    total = np.zeros((scale * padded.shape[0], scale * padded.shape[1], COLOURS + 1), np.float32)
    rows, columns = (_cut(size, tile, overlap, side) for size in padded.shape[:2])
    for row, down in rows:
        for column, across in columns:
            part = padded[row : row + len(down), column : column + len(across)]
            found = np.asarray(_enlarge(network, part[None]))[0]
            weights = np.kron(np.outer(down, across), np.ones((scale, scale), np.float32))
            place = total[scale * row :, scale * column :][: len(found), : found.shape[1]]
            place += np.dstack([found * weights[..., None], weights])
    pixels = total[: scale * y, : scale * x, :COLOURS] / total[: scale * y, : scale * x, COLOURS:]
    return np.rint(255 * pixels.clip(0, 1)).astype(np.uint8)


@jax.jit
def _enlarge(network: RRDBNet, pictures: jax.Array) -> jax.Array:
    return network(pictures.astype(jnp.float32) / 255)


def _cut(size: int, tile: int, overlap: int, step: int) -> list[tuple[int, NDArray[np.float32]]]:
    """Where tiles start along a side of `size` pixels, at multiples of `step`, and what each of
    their pixels counts: falling to 0 towards another tile, all at the ends of the side."""
    count = max(1, math.ceil((size - overlap) / (tile - overlap)))
    starts = np.linspace(0, max(0, size - tile), count) // step * step
    cuts = []
    for start in starts.astype(int).tolist():
        length = min(tile, size)
        distance = np.arange(length, dtype=np.float32) + 0.5 - overlap / 4
        ramp = (distance / (overlap / 2)).clip(0, 1)
        ones = np.ones_like(ramp)
        left, right = ramp if start else ones, ramp[::-1] if start + length < size else ones
        cuts.append((start, left * right))
    return cuts
