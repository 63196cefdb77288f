"""What the image tokenizer is trained on. Images [B, Y, X, 3] in [-1, 1], every loss a scalar."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from cm3leon_jax.config import ImageTokenizer
from cm3leon_jax.models.vqgan import Decoder, unit

Features = Callable[[jax.Array], Sequence[jax.Array]]  # images -> [B, y, x, C] per layer


def reconstruction(images: jax.Array, targets: jax.Array, config: ImageTokenizer) -> jax.Array:
    """Weighted mean squared and mean absolute error."""
    error = images - targets
    return config.squared * jnp.square(error).mean() + config.absolute * jnp.abs(error).mean()


def perceptual(images: jax.Array, targets: jax.Array, features: Features) -> jax.Array:
    """Squared distance of unit-length features, summed over layers (LPIPS without its weights)."""
    pairs = zip(features(images), features(targets))
    return sum((jnp.square(unit(a) - unit(b)).sum(-1).mean() for a, b in pairs), jnp.zeros(()))


def hinge_discriminator(real: jax.Array, fake: jax.Array) -> jax.Array:
    """The critic's loss for its verdicts on real and on reconstructed images."""
    return 0.5 * (jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + fake).mean())


def hinge_generator(fake: jax.Array) -> jax.Array:
    """The decoder's loss for the critic's verdicts on its images."""
    return -fake.mean()


def adversarial_weight(
    decoder: Decoder,
    features: jax.Array,
    other: Callable[[jax.Array], jax.Array],
    adversarial: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """Ratio of the two losses' gradient lengths at the decoder's last layer, at most 1e4.

    It keeps the critic from drowning the reconstruction (taming, arXiv 2012.09841, eq. 7).
    `features` are the last layer's inputs; both losses take the decoder's images.
    """

    def length(loss: Callable[[jax.Array], jax.Array]) -> jax.Array:
        gradient = jax.grad(lambda last: loss(last.finish(features)))(decoder)
        return jnp.linalg.norm(gradient.conv_out.kernel[...])

    ratio = length(other) / (length(adversarial) + 1e-4)
    return jax.lax.stop_gradient(ratio.clip(0, 1e4))


def psnr(images: jax.Array, targets: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio in dB of the clipped images; the peak is 2."""
    error = jnp.square(images.clip(-1, 1) - targets).mean()
    return 10 * jnp.log10(4 / jnp.maximum(error, 1e-10))
