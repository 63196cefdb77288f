"""RRDBNet, the generator of ESRGAN (arXiv 1809.00219) and Real-ESRGAN (arXiv 2107.10833).

A trunk of residual-in-residual dense blocks at a low resolution, then two doublings by the nearest
neighbour. Scale 2 and 1 read groups of pixels as channels first, so that the trunk is the same.
B batch, Y and X pixels, C channels, G growth.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from cm3leon_jax.fields import require_choice

SHRINK = {4: 1, 2: 2, 1: 4}  # pixels per side that become channels, by scale
RESIDUAL = 0.2  # what is added of a block's and a group's output


class Upscaling(NamedTuple):
    """The shape of a network; the defaults are those of RealESRGAN_x4plus."""

    scale: int = 4
    channels: int = 64
    growth: int = 32
    blocks: int = 23
    colours: int = 3


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

    def __init__(self, c: Upscaling):
        wide, more, deep = c.channels, c.growth, (c.blocks, 3)
        self.convs = nnx.List(
            [Conv(wide + i * more, more if i < 4 else wide, *deep) for i in range(5)]
        )

    def run(self, x: jax.Array) -> jax.Array:
        def group(x: jax.Array, layer: Blocks) -> tuple[jax.Array, None]:
            seen = x
            for conv in [*layer.convs][:4]:
                seen = jnp.concatenate([seen, leaky(conv(seen))], axis=-1)
            return x + RESIDUAL * layer.convs[4](seen), None

        def block(x: jax.Array, layer: Blocks) -> tuple[jax.Array, None]:
            return x + RESIDUAL * jax.lax.scan(group, x, layer)[0], None

        return jax.lax.scan(block, x, self)[0]


class RRDBNet(nnx.Module):
    """Pictures to larger ones; parameters are zeros until `interop.esrgan` fills them."""

    def __init__(self, c: Upscaling):
        require_choice("scale", c.scale, tuple(SHRINK))
        self.config, wide = c, c.channels
        self.first = Conv(c.colours * SHRINK[c.scale] ** 2, wide)
        self.blocks = Blocks(c)
        self.trunk, self.up1, self.up2, self.high = (Conv(wide, wide) for _ in range(4))
        self.last = Conv(wide, c.colours)

    def __call__(self, images: jax.Array) -> jax.Array:
        """[B Y X C] in [0, 1] -> [B Y*scale X*scale C], unclipped; 4 / scale divides Y, X."""
        x = self.first(shrink(images, SHRINK[self.config.scale]))
        x = x + self.trunk(self.blocks.run(x))
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
