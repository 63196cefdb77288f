"""Next-token losses: chunked cross-entropy with per-modality sums and z-loss.

B batch, T positions, D width, V vocabulary. The chunked form never holds the logits of more than
`chunk` positions: they are computed, used and, in the backward pass, computed again.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cm3leon_jax.sharding import compute_rules, constrain, spec


class TokenLoss(NamedTuple):
    """Weighted sums over tokens, float32, [] or [B] of each row; divide by the matching weight."""

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
    """Weighted next-token cross-entropy of a whole batch; arguments as of `row_losses`."""
    sums = row_losses(hidden, table, targets, weights, image_start, chunk)
    return jax.tree.map(jnp.sum, sums)


def row_losses(
    hidden: jax.Array,
    table: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    image_start: int,
    chunk: int,
) -> TokenLoss:
    """Weighted next-token cross-entropy of each row: sums [B].

    hidden [B T D], table [V D], targets and weights [B T]; targets from `image_start` on are image
    codes. Logits and sums are float32. T is padded up to a multiple of `chunk` with weight 0.
    On a mesh every device sums over its own rows, so that the table is gathered and its gradient
    reduced once and not for each chunk; logits stay split over `tensor`. B must divide there.
    """
    weights = weights.astype(jnp.float32)
    rules = compute_rules()
    if rules is None:
        return _sum_chunks(hidden, table, targets, weights, image_start, chunk, ())
    rows, vocab = spec(("batch",), rules), spec(("vocab",), rules)

    def of_device(
        hidden: jax.Array, table: jax.Array, targets: jax.Array, weights: jax.Array
    ) -> TokenLoss:
        # Made each device's own before the scan, so that its gradient is summed up after it.
        table = jax.lax.pcast(table, rules["batch"], to="varying")
        arrays = (hidden, table, targets, weights)
        return _sum_chunks(*arrays, image_start, chunk, rules["vocab"])

    return jax.shard_map(of_device, in_specs=(rows, vocab, rows, rows), out_specs=rows)(
        hidden, table, targets, weights
    )


def _sum_chunks(
    hidden: jax.Array,
    table: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    image_start: int,
    chunk: int,
    vocab: Any,
) -> TokenLoss:
    """Sums [B] of one device's rows; `vocab` is the mesh axis that its part of the table is of."""
    batch, length = targets.shape
    chunk = min(chunk, length)
    padding = -length % chunk

    def split(x: jax.Array) -> jax.Array:  # [B T ...] -> [T/chunk B chunk ...]
        x = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))
        x = x.reshape(batch, -1, chunk, *x.shape[2:])
        return jnp.moveaxis(x, 1, 0)

    first = len(table) * jax.lax.axis_index(vocab)  # the id of the table's first row

    def of_chunk(hidden: jax.Array, targets: jax.Array, weights: jax.Array) -> TokenLoss:
        logits = jnp.einsum("btd,vd->btv", hidden, table, preferred_element_type=jnp.float32)
        highest = jax.lax.pmax(jax.lax.stop_gradient(logits).max(axis=-1), vocab)
        sums = jnp.exp(logits - highest[..., None]).sum(axis=-1)
        log_z = jnp.log(jax.lax.psum(sums, vocab)) + highest
        place = targets - first
        inside = (place >= 0) & (place < len(table))
        own = jnp.take_along_axis(logits, place[..., None] * inside[..., None], axis=-1)[..., 0]
        chosen = jax.lax.psum(own * inside, vocab)
        loss = weights * (log_z - chosen)
        is_image = targets >= image_start
        # Chosen, not multiplied: a NaN of one modality stays out of the other's sum.
        parts = TokenLoss(
            total=loss,
            weight=weights,
            text_total=jnp.where(is_image, 0.0, loss),
            text_weight=jnp.where(is_image, 0.0, weights),
            image_total=jnp.where(is_image, loss, 0.0),
            image_weight=jnp.where(is_image, weights, 0.0),
            z_total=weights * log_z**2,
        )
        return jax.tree.map(lambda x: x.sum(axis=1), parts)

    if chunk < length:  # one chunk's logits may stay; several are computed again
        of_chunk = jax.checkpoint(of_chunk)

    parts = jax.lax.map(lambda x: of_chunk(*x), tuple(map(split, (hidden, targets, weights))))
    return jax.tree.map(lambda x: x.sum(axis=0), parts)


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
