"""The image tokenizer: encoder, quantizer, decoder.

B images, Y X pixels, y x tokens, D width of a code, K codes. Images are float [B, Y, X, 3] in
[-1, 1]. Structure and order of the layers are those of taming-transformers' VQGAN
(arXiv 2012.09841), which Make-A-Scene and Chameleon kept, so that their weights fit. `patch` > 1 is
ours: the first convolution reads patches as channels, the last writes them, which is what makes
32-pixel images trainable on a laptop.
"""

import math
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cm3leon_jax.config import ImageTokenizer

USED = 0.01  # share of the mean use from which a code counts as used


class Statistic(nnx.Variable):
    """An array that training moves by a rule, not by a gradient."""


class Reconstruction(NamedTuple):
    """What a training pass returns."""

    images: jax.Array  # [B, Y, X, 3], not clipped
    features: jax.Array  # [B, Y/patch, X/patch, channels] what the decoder's last layer reads
    codes: jax.Array  # [B, y, x] int32
    latents: jax.Array  # [B, y, x, D] encoder outputs as the quantizer sees them
    commitment: jax.Array  # [] pulls latents to their codes
    codebook: jax.Array  # [] pulls codes to their latents; 0 where a moving average does that


def conv(inputs: int, outputs: int, kernel: int, rngs: nnx.Rngs, **options: Any) -> nnx.Conv:
    """A convolution whose kernel waits for `draw_kernels`."""
    zeros = nnx.initializers.zeros
    return nnx.Conv(inputs, outputs, (kernel, kernel), kernel_init=zeros, rngs=rngs, **options)


def draw_kernels(module: nnx.Module, key: jax.Array) -> None:
    """Fills every kernel under `module` with normal numbers of variance 1 / inputs.

    One draw for all: a draw per kernel takes XLA 20 s to compile on CPU even for the tiny model.
    """
    kernels = [
        kernel
        for path, kernel in nnx.to_flat_state(nnx.state(module, nnx.Param))
        if path[-1] == "kernel"
    ]
    numbers = jax.random.normal(key, (sum(kernel.size for kernel in kernels),))
    ends = np.cumsum([kernel.size for kernel in kernels])[:-1]
    for kernel, part in zip(kernels, jnp.split(numbers, ends)):
        inputs = math.prod(kernel.shape[-4:-1])  # others may be stacked in front
        kernel[...] = part.reshape(kernel.shape) * inputs**-0.5


def fold(images: jax.Array, patch: int) -> jax.Array:
    """[B, Y, X, C] -> [B, Y/patch, X/patch, patch*patch*C]."""
    b, y, x, c = images.shape
    patches = images.reshape(b, y // patch, patch, x // patch, patch, c)
    return patches.swapaxes(2, 3).reshape(b, y // patch, x // patch, patch * patch * c)


def unfold(patches: jax.Array, patch: int) -> jax.Array:
    """The inverse of `fold`."""
    b, y, x, c = patches.shape
    images = patches.reshape(b, y, x, patch, patch, c // patch**2)
    return images.swapaxes(2, 3).reshape(b, y * patch, x * patch, c // patch**2)


class Residual(nnx.Module):
    """norm, swish, conv, norm, swish, conv, plus a 1x1 shortcut where the channels change."""

    def __init__(self, inputs: int, outputs: int, groups: int, *, rngs: nnx.Rngs):
        self.norm1 = nnx.GroupNorm(inputs, groups, rngs=rngs)
        self.conv1 = conv(inputs, outputs, 3, rngs)
        self.norm2 = nnx.GroupNorm(outputs, groups, rngs=rngs)
        self.conv2 = conv(outputs, outputs, 3, rngs)
        self.shortcut = conv(inputs, outputs, 1, rngs) if inputs != outputs else None

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.conv1(jax.nn.swish(self.norm1(x)))
        h = self.conv2(jax.nn.swish(self.norm2(h)))
        return h + (x if self.shortcut is None else self.shortcut(x))


class Attention(nnx.Module):
    """One head over all grid positions."""

    def __init__(self, channels: int, groups: int, *, rngs: nnx.Rngs):
        self.norm = nnx.GroupNorm(channels, groups, rngs=rngs)
        self.query = conv(channels, channels, 1, rngs)
        self.key = conv(channels, channels, 1, rngs)
        self.value = conv(channels, channels, 1, rngs)
        self.out = conv(channels, channels, 1, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.norm(x)
        q, k, v = self.query(h), self.key(h), self.value(h)
        scores = jnp.einsum("byxd,buvd->byxuv", q, k) * x.shape[-1] ** -0.5
        weights = jax.nn.softmax(scores, axis=(-2, -1))
        return x + self.out(jnp.einsum("byxuv,buvd->byxd", weights, v))


class Middle(nnx.Module):
    """Residual, attention, residual at the coarsest grid."""

    def __init__(self, channels: int, groups: int, *, rngs: nnx.Rngs):
        self.block1 = Residual(channels, channels, groups, rngs=rngs)
        self.attention = Attention(channels, groups, rngs=rngs)
        self.block2 = Residual(channels, channels, groups, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.block2(self.attention(self.block1(x)))


class Level(nnx.Module):
    """Residual blocks at one grid size, each followed by attention if wanted."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        blocks: int,
        groups: int,
        attend: bool,
        *,
        rngs: nnx.Rngs,
    ):
        sizes = [inputs, *[outputs] * blocks]
        self.blocks = nnx.List([Residual(a, b, groups, rngs=rngs) for a, b in pairwise(sizes)])
        self.attentions = nnx.List(
            [Attention(outputs, groups, rngs=rngs) for _ in range(blocks * attend)]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        for i, block in enumerate(self.blocks):
            x = block(x)
            if self.attentions:
                x = self.attentions[i](x)
        return x


class Encoder(nnx.Module):
    """[B, Y, X, 3] -> [B, y, x, latent]."""

    def __init__(self, config: ImageTokenizer, *, rngs: nnx.Rngs):
        self.patch = config.patch
        self.conv_in = conv(3 * config.patch**2, config.channels, 3, rngs)
        self.levels: nnx.List[Level] = nnx.List([])
        self.downs: nnx.List[nnx.Conv] = nnx.List([])
        channels, side = config.channels, config.size // config.patch
        for i, multiplier in enumerate(config.multipliers):
            outputs = config.channels * multiplier
            attend = side in config.attention
            self.levels.append(
                Level(channels, outputs, config.blocks, config.groups, attend, rngs=rngs)
            )
            channels = outputs
            if i + 1 < len(config.multipliers):
                padding = ((0, 1), (0, 1))  # taming pads right and bottom only
                self.downs.append(conv(channels, channels, 3, rngs, strides=2, padding=padding))
                side //= 2
        self.middle = Middle(channels, config.groups, rngs=rngs)
        self.norm_out = nnx.GroupNorm(channels, config.groups, rngs=rngs)
        self.conv_out = conv(channels, config.latent, 3, rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = self.conv_in(fold(images, self.patch))
        for i, level in enumerate(self.levels):
            x = level(x)
            if i < len(self.downs):
                x = self.downs[i](x)
        return self.conv_out(jax.nn.swish(self.norm_out(self.middle(x))))


class PatchEncoder(nnx.Module):
    """[B, Y, X, 3] -> [B, y, x, latent], every token from its own pixels alone.

    The same pixels always give the same code, whatever is beside them. That makes codes much easier
    to predict: on scenes the transformer's image loss falls to a half at equal steps, because a
    convolutional encoder spends 1.6 nats per code on what the neighbours look like (measured).
    """

    def __init__(self, config: ImageTokenizer, *, rngs: nnx.Rngs):
        self.patch, width = config.factor, 2 * config.channels * config.multipliers[-1]
        self.conv_in = conv(3 * self.patch**2, width, 1, rngs)
        self.blocks = nnx.List([conv(width, width, 1, rngs) for _ in range(config.blocks + 1)])
        self.conv_out = conv(width, config.latent, 1, rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = self.conv_in(fold(images, self.patch))
        for block in self.blocks:
            x = x + block(jax.nn.swish(x))
        return self.conv_out(jax.nn.swish(x))


class Decoder(nnx.Module):
    """[B, y, x, latent] -> [B, Y, X, 3], levels from coarse to fine."""

    def __init__(self, config: ImageTokenizer, *, rngs: nnx.Rngs):
        self.patch = config.patch
        channels, side = config.channels * config.multipliers[-1], config.grid
        self.conv_in = conv(config.latent, channels, 3, rngs)
        self.middle = Middle(channels, config.groups, rngs=rngs)
        self.levels: nnx.List[Level] = nnx.List([])
        self.ups: nnx.List[nnx.Conv] = nnx.List([])
        for i, multiplier in enumerate(reversed(config.multipliers)):
            outputs = config.channels * multiplier
            attend = side in config.attention
            self.levels.append(
                Level(channels, outputs, config.blocks + 1, config.groups, attend, rngs=rngs)
            )
            channels = outputs
            if i + 1 < len(config.multipliers):
                self.ups.append(conv(channels, channels, 3, rngs))
                side *= 2
        self.norm_out = nnx.GroupNorm(channels, config.groups, rngs=rngs)
        self.conv_out = conv(channels, 3 * config.patch**2, 3, rngs)

    def __call__(self, latents: jax.Array) -> jax.Array:
        return self.finish(self.features(latents))

    def features(self, latents: jax.Array) -> jax.Array:
        """All but the last layer: [B, y, x, latent] -> [B, Y/patch, X/patch, channels]."""
        x = self.middle(self.conv_in(latents))
        for i, level in enumerate(self.levels):
            x = level(x)
            if i < len(self.ups):
                x = self.ups[i](x.repeat(2, axis=1).repeat(2, axis=2))
        return jax.nn.swish(self.norm_out(x))

    def finish(self, features: jax.Array) -> jax.Array:
        """The last layer, whose gradients balance the adversarial loss: features -> images."""
        return unfold(self.conv_out(features), self.patch)


def unit(x: jax.Array) -> jax.Array:
    """The last axis scaled to length 1."""
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)


class Quantizer(nnx.Module):
    """K codes of D numbers; a latent becomes its nearest code.

    Collapse is held off by `restart`: a code whose credit, the moving average of its use, falls
    below that share of the mean is moved onto a latent of the current batch, with a credit of 1.
    """

    def __init__(self, config: ImageTokenizer, *, rngs: nnx.Rngs):
        self.normalize, self.moving = config.normalize, config.quantizer == "ema"
        is_scored = config.quantizer == "gumbel"
        self.scores = nnx.Linear(config.width, config.codes, rngs=rngs) if is_scored else None
        self.decay, self.restart = config.decay, config.restart
        codes = jax.random.normal(rngs.params(), (config.codes, config.width))
        kind = Statistic if self.moving else nnx.Param
        self.codes = kind(unit(codes) if config.normalize else codes)
        self.credit = Statistic(jnp.ones(config.codes))  # 1 = the mean use
        self.uses = Statistic(jnp.zeros(config.codes))  # the same average, but without restarts

    @property
    def codebook(self) -> jax.Array:
        """[K, D], unit length if the config says so."""
        return unit(self.codes[...]) if self.normalize else self.codes[...]

    def nearest(self, latents: jax.Array) -> jax.Array:
        """[..., D] -> [...] int32; the first of equally near codes, or of those scored highest.

        Two plain reductions: XLA's argmax (a reduction over pairs) is several times slower on CPU.
        """
        codebook = self.codebook
        if self.scores is None:
            scores = latents @ codebook.T - 0.5 * jnp.square(codebook).sum(-1)
        else:
            scores = self.scores(latents)
        best = scores.max(-1, keepdims=True)
        index = jnp.arange(len(codebook), dtype=jnp.int32)
        return jnp.where(scores >= best, index, len(codebook) - 1).min(-1)

    def follow(self, latents: jax.Array, codes: jax.Array, key: jax.Array) -> None:
        """Moves averages and codes after a step; latents [B, y, x, D], codes [B, y, x]."""
        latents, codes = latents.reshape(-1, latents.shape[-1]), codes.reshape(-1)
        book, keep = self.codes[...], self.decay
        mean = codes.size / len(book)
        hits = jnp.zeros(len(book)).at[codes].add(1 / mean)
        credit = keep * self.credit[...] + (1 - keep) * hits
        self.uses[...] = keep * self.uses[...] + (1 - keep) * hits
        if self.moving:
            sums = jnp.zeros_like(book).at[codes].add(latents / mean)
            pull = (1 - keep) * (sums - hits[:, None] * book)
            book = book + pull / jnp.maximum(credit, 1e-6)[:, None]
            book = unit(book) if self.normalize else book
        dead = credit < self.restart
        fresh = latents[jax.random.randint(key, (len(book),), 0, len(latents))]
        self.codes[...] = jnp.where(dead[:, None], fresh, book)
        self.credit[...] = jnp.where(dead, 1.0, credit)

    def report(self) -> dict[str, jax.Array]:
        """Share of codes in use and their perplexity, both by the moving average of use."""
        uses = self.uses[...]
        share = uses / uses.sum()
        entropy = -(share * jnp.log(jnp.maximum(share, 1e-20))).sum()
        return {"usage": (uses >= USED).mean(), "perplexity": jnp.exp(entropy)}


class VQGAN(nnx.Module):
    """Images to codes and back: a pytree, made by jit of `VQGAN(config, rngs=nnx.Rngs(key))`."""

    def __init__(self, config: ImageTokenizer, *, rngs: nnx.Rngs):
        self.size = config.size  # pixels of a side
        encoder = PatchEncoder if config.encoder == "patch" else Encoder
        self.encoder = encoder(config, rngs=rngs)
        self.quant_conv = conv(config.latent, config.width, 1, rngs)
        self.quantizer = Quantizer(config, rngs=rngs)
        self.post_quant_conv = conv(config.width, config.latent, 1, rngs)
        self.decoder = Decoder(config, rngs=rngs)
        draw_kernels(self, rngs.params())

    @property
    def codebook(self) -> jax.Array:
        """[K, D]"""
        return self.quantizer.codebook

    def latents(self, images: jax.Array) -> jax.Array:
        """[B, Y, X, 3] -> [B, y, x, D], before quantization."""
        latents = self.quant_conv(self.encoder(images))
        return unit(latents) if self.quantizer.normalize else latents

    def encode(self, images: jax.Array) -> jax.Array:
        """[B, Y, X, 3] in [-1, 1] -> codes [B, y, x] int32."""
        return self.quantizer.nearest(self.latents(images))

    def decode(self, codes: jax.Array) -> jax.Array:
        """Codes [B, y, x] -> images [B, Y, X, 3] in [-1, 1]."""
        return self.decoder(self.post_quant_conv(self.codebook[codes])).clip(-1, 1)

    def __call__(self, images: jax.Array, bypass: jax.Array | None = None) -> Reconstruction:
        """Encodes, quantizes and decodes; gradients pass the quantizer straight through.

        Where `bypass` [B, 1, 1, 1] is true the decoder sees the latents themselves.
        """
        latents = self.latents(images)
        codes = self.quantizer.nearest(jax.lax.stop_gradient(latents))
        vectors = self.codebook[codes]
        commitment = jnp.square(latents - jax.lax.stop_gradient(vectors)).mean()
        codebook = jnp.zeros(())
        if not self.quantizer.moving:
            codebook = jnp.square(jax.lax.stop_gradient(latents) - vectors).mean()
        straight = latents + jax.lax.stop_gradient(vectors - latents)
        if bypass is not None:
            straight = jnp.where(bypass, latents, straight)
        features = self.decoder.features(self.post_quant_conv(straight))
        images = self.decoder.finish(features)
        return Reconstruction(images, features, codes, latents, commitment, codebook)
