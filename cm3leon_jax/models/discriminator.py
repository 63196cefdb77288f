"""The PatchGAN critic that sharpens the image tokenizer (arXiv 1611.07004, as in taming)."""

import jax
from flax import nnx


class Discriminator(nnx.Module):
    """[B, Y, X, 3] in [-1, 1] -> [B, y, x, 1]: one verdict per patch, high for real.

    `layers` strided convolutions and two plain ones, all 4x4. GroupNorm stands in for taming's
    BatchNorm: no running statistics, and no difference between one device and many.
    """

    def __init__(self, channels: int = 64, layers: int = 3, *, rngs: nnx.Rngs):
        widths = [channels * min(2**i, 8) for i in range(layers + 1)]
        self.convs = nnx.List([])
        for i, (inputs, outputs) in enumerate(zip([3, *widths, widths[-1]], [*widths, 1])):
            self.convs.append(
                nnx.Conv(
                    inputs,
                    outputs,
                    (4, 4),
                    strides=2 if i < layers else 1,
                    padding=1,
                    use_bias=i in (0, layers + 1),
                    rngs=rngs,
                )
            )
        self.norms = nnx.List(
            [nnx.GroupNorm(width, min(32, channels), rngs=rngs) for width in widths[1:]]
        )

    def __call__(self, images: jax.Array) -> jax.Array:
        x = self.convs[0](images)
        for conv, norm in zip(list(self.convs)[1:-1], self.norms):
            x = norm(conv(jax.nn.leaky_relu(x, 0.2)))
        return self.convs[-1](jax.nn.leaky_relu(x, 0.2))
