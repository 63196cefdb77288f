"""The training step of the transformer: pure functions from (state, batch) to (state, metrics).

B batch, T positions. A batch holds tokens, targets, weights, segments, positions and codes_at,
all [B T], as `packing.fill_row` makes them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from cm3leon_jax import config
from cm3leon_jax.chips import chip_of
from cm3leon_jax.models.losses import TokenLoss, cross_entropy
from cm3leon_jax.models.transformer import Transformer
from cm3leon_jax.sharding import batch_sharding, shardings
from cm3leon_jax.training.optimizer import count_skipped

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


class TrainState(NamedTuple):
    """Everything that a step changes."""

    step: jax.Array  # int32, updates done
    model: Transformer
    moments: Any  # optimizer state


def init_state(
    c: config.Experiment,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    codebook: jax.Array | None = None,
) -> TrainState:
    """A fresh state; codebook [image_codes code_features] as in `Transformer`."""
    model = Transformer(c.model, rngs=nnx.Rngs(key), codebook=codebook)
    return TrainState(jnp.zeros((), jnp.int32), model, optimizer.init(model))


def start_state(
    optimizer: optax.GradientTransformation, model: Transformer, mesh: jax.sharding.Mesh
) -> TrainState:
    """A fresh state around a model that is on the mesh already and is donated."""
    fresh = lambda model: TrainState(jnp.zeros((), jnp.int32), model, optimizer.init(model))  # noqa: E731
    at = shardings(jax.eval_shape(fresh, model), mesh)
    return jax.jit(fresh, out_shardings=at, donate_argnums=0)(model)


def token_loss(c: config.Experiment, model: Transformer, batch: Batch) -> TokenLoss:
    """Loss sums of a batch."""
    hidden = model(batch["tokens"], batch["segments"], batch["positions"], batch["codes_at"])
    return _loss(c, model, hidden, batch["targets"], batch["weights"])


def train_step(
    c: config.Experiment,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    state: TrainState,
    batch: Batch,
) -> tuple[TrainState, Metrics]:
    """One update from the mean loss over all weighted tokens of the whole batch.

    Gradients are sums over tokens until the end, so `train.accumulate` changes memory, not the
    result.
    """

    def loss(model: Transformer, part: Batch) -> tuple[jax.Array, TokenLoss]:
        sums = token_loss(c, model, part)
        return sums.total + c.objective.z_loss * sums.z_total, sums

    def gradients(part: Batch) -> tuple[Transformer, TokenLoss]:
        return jax.grad(loss, has_aux=True)(state.model, part)

    grads, sums = _sum_parts(gradients, batch, c.train.accumulate)
    grads = jax.tree.map(lambda g: g / jnp.maximum(sums.weight, 1.0), grads)
    updates, moments = optimizer.update(grads, state.moments, state.model)
    metrics = sums.means() | {
        "tokens": (batch["segments"] > 0).sum().astype(jnp.float32),  # whatever they weigh
        "gradient_norm": optax.global_norm(grads),
        "learning_rate": jnp.asarray(schedule(state.step)),
    }
    metrics |= count_skipped(moments)
    model = optax.apply_updates(state.model, updates)
    return TrainState(state.step + 1, model, moments), metrics


def eval_step(c: config.Experiment, model: Transformer, batch: Batch) -> Metrics:
    """Mean losses of a batch without an update: all, by modality, by quarter of the row length.

    "loss_at_1024" is that of tokens whose place in their example is 1024 or more, up to the next.
    As many rows at once as in `train_step`.
    """
    size = -(-c.data.row_length // 4)
    starts = range(0, c.data.row_length, size)

    def losses(part: Batch) -> list[TokenLoss]:
        at, weights = part["positions"], part["weights"]
        hidden = model(part["tokens"], part["segments"], at, part["codes_at"])
        inside = [weights * ((start <= at) & (at < start + size)) for start in starts]
        return [_loss(c, model, hidden, part["targets"], some) for some in (weights, *inside)]

    whole, *quarters = _sum_parts(losses, batch, c.train.accumulate)
    ends = {f"loss_at_{start}": sums.means()["loss"] for start, sums in zip(starts, quarters)}
    return whole.means() | ends


def _loss(
    c: config.Experiment,
    model: Transformer,
    hidden: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
) -> TokenLoss:
    chunk = c.model.loss_chunk
    return cross_entropy(hidden, model.head_table(), targets, weights, model.image_start, chunk)


def compile_step(
    step: Callable[[Any, Batch], tuple[Any, Metrics]], state: Any, mesh: jax.sharding.Mesh
) -> jax.stages.Wrapped:
    """Jits any network's step: the state is donated and keeps its shardings, batches are split.

    XLA gets the options of the mesh's chips.
    """
    at, chip = shardings(state, mesh), chip_of(mesh.devices.flat[0].device_kind)
    return jax.jit(
        step,
        in_shardings=(at, batch_sharding(mesh)),
        out_shardings=(at, None),
        donate_argnums=0,
        compiler_options=chip.xla if chip else None,
    )


def init_sharded(init: Callable[[jax.Array], Any], key: jax.Array, mesh: jax.sharding.Mesh) -> Any:
    """Runs `init(key)` so that every array is born where it will live."""
    at = shardings(jax.eval_shape(init, key), mesh)
    return jax.jit(init, out_shardings=at)(key)


def _sum_parts(of_part: Callable[[Batch], Any], batch: Batch, parts: int) -> Any:
    """The sum of `of_part` over that many parts of the batch, one at a time."""
    if parts == 1:
        return of_part(batch)
    split = jax.tree.map(lambda x: _split_rows(x, parts), batch)
    form = jax.eval_shape(of_part, jax.tree.map(lambda x: x[0], split))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), form)
    add = lambda total, part: (jax.tree.map(jnp.add, total, of_part(part)), None)  # noqa: E731
    return jax.lax.scan(add, zeros, split)[0]


def _split_rows(x: jax.Array, parts: int) -> jax.Array:
    """[B ...] -> [parts B/parts ...]; each part takes rows from every device's share."""
    return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)
