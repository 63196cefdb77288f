"""The PatchGAN critic that sharpens the image tokenizer (arXiv 1611.07004, as in taming)."""

from itertools import pairwise

import jax
from flax import nnx

from cm3leon_jax.models.vqgan import conv, draw_kernels


class Discriminator(nnx.Module):
    """[B, Y, X, 3] in [-1, 1] -> [B, y, x, 1]: one verdict per patch, high for real.

    `layers` strided convolutions and two plain ones, all 4x4. GroupNorm stands in for taming's
    BatchNorm: no running statistics, and no difference between one device and many.
    """

    def __init__(self, channels: int = 64, layers: int = 3, *, rngs: nnx.Rngs):
        widths = [channels * min(2**i, 8) for i in range(layers + 1)]
        self.convs: nnx.List[nnx.Conv] = nnx.List([])
        for i, (inputs, outputs) in enumerate(pairwise([3, *widths, 1])):
            stride, biased = 2 if i < layers else 1, i in (0, layers + 1)
            self.convs.append(
                conv(inputs, outputs, 4, rngs, strides=stride, padding=1, use_bias=biased)
            )
        self.norms = nnx.List(
            [nnx.GroupNorm(width, min(32, channels), rngs=rngs) for width in widths[1:]]
        )
        draw_kernels(self, rngs.params())

    def __call__(self, images: jax.Array) -> jax.Array:
        x = self.convs[0](images)
        for layer, norm in zip(list(self.convs)[1:-1], self.norms):
            x = norm(layer(jax.nn.leaky_relu(x, 0.2)))
        return self.convs[-1](jax.nn.leaky_relu(x, 0.2))
