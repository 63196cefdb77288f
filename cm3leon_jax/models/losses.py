"""Next-token losses: chunked cross-entropy with per-modality sums and z-loss.

B batch, T positions, D width, V vocabulary. The chunked form never holds the logits of more than
`chunk` positions: they are computed, used and, in the backward pass, computed again.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cm3leon_jax.sharding import constrain


class TokenLoss(NamedTuple):
    """Weighted sums over tokens; divide by the matching weight for means. All float32 scalars."""

    total: jax.Array  # cross-entropy
    weight: jax.Array
    text_total: jax.Array  # the part whose targets are not image codes
    text_weight: jax.Array
    image_total: jax.Array
    image_weight: jax.Array
    z_total: jax.Array  # log(Z)^2

    def means(self) -> dict[str, jax.Array]:
        """Mean losses in nats per token by name; 0 where a modality has no tokens."""
        mean = lambda total, weight: total / jnp.maximum(weight, 1e-9)  # noqa: E731
        return {
            "loss": mean(self.total, self.weight),
            "text_loss": mean(self.text_total, self.text_weight),
            "image_loss": mean(self.image_total, self.image_weight),
            "z_loss": mean(self.z_total, self.weight),
        }


def cross_entropy(
    hidden: jax.Array,
    table: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    image_start: int,
    chunk: int,
) -> TokenLoss:
    """Weighted next-token cross-entropy.

    hidden [B T D], table [V D], targets and weights [B T]; targets from `image_start` on are image
    codes. Logits and sums are float32. T is padded up to a multiple of `chunk` with weight 0.
    """
    batch, length = targets.shape
    chunk = min(chunk, length)
    padding = -length % chunk

    def split(x: jax.Array) -> jax.Array:  # [B T ...] -> [T/chunk B chunk ...]
        x = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))
        x = x.reshape(batch, -1, chunk, *x.shape[2:])
        return jnp.moveaxis(x, 1, 0)

    def of_chunk(hidden: jax.Array, targets: jax.Array, weights: jax.Array) -> TokenLoss:
        logits = jnp.einsum("btd,vd->btv", hidden, table, preferred_element_type=jnp.float32)
        logits = constrain(logits, "batch", None, "vocab")
        log_z = jax.nn.logsumexp(logits, axis=-1)
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        loss = weights * (log_z - chosen)
        is_image = targets >= image_start
        image = is_image.astype(jnp.float32)
        return TokenLoss(
            total=loss.sum(),
            weight=weights.sum(),
            # Chosen, not multiplied: a NaN of one modality stays out of the other's sum.
            text_total=jnp.where(is_image, 0.0, loss).sum(),
            text_weight=(weights * (1 - image)).sum(),
            image_total=jnp.where(is_image, loss, 0.0).sum(),
            image_weight=(weights * image).sum(),
            z_total=(weights * log_z**2).sum(),
        )

    if chunk < length:  # one chunk's logits may stay; several are computed again
        of_chunk = jax.checkpoint(of_chunk)

    def add(sums: TokenLoss, inputs: tuple[jax.Array, ...]) -> tuple[TokenLoss, None]:
        return jax.tree.map(jnp.add, sums, of_chunk(*inputs)), None

    zeros = TokenLoss(*(jnp.zeros((), jnp.float32) for _ in TokenLoss._fields))
    inputs = (split(hidden), split(targets), split(weights.astype(jnp.float32)))
    return jax.lax.scan(add, zeros, inputs)[0]


def contrastive(
    images: jax.Array, texts: jax.Array, scale: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """CLIP's symmetric loss (arXiv 2103.00020, figure 3): pair i belongs together, no other does.

    images and texts are unit vectors [B E] of the whole global batch, however it is split over
    devices; scale [] multiplies their cosines. Returns the mean of the two directions in nats and
    the share of rows, over both directions, whose own partner scores highest.
    """
    logits = scale * constrain(images @ texts.T, "batch", None)
    own = jnp.diagonal(logits)
    by_image, by_text = (jax.nn.logsumexp(logits, axis=axis) for axis in (1, 0))
    loss = (0.5 * (by_image + by_text) - own).mean()
    best = jnp.stack([logits.max(axis=1), logits.max(axis=0)])
    return loss, {"loss": loss, "accuracy": (own >= best).mean()}
