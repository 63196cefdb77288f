"""AdamW or Muon with warmup and decay; every array of a model must match a rule of the table."""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers

from cm3leon_jax import config
from cm3leon_jax.checkpoint import names_of

# First match wins; None: not trained. An array that matches nothing is an error.
WEIGHT_DECAY = (
    (r"codebook$", None),
    (r"(norm|scale|bias|positions|codes|class_token)", 0.0),
    (r"(embedding|projection|head|query|key|value|out|gate|up|down|kernel)$", 1.0),
)

# What Muon makes orthogonal, each layer's matrix by itself: axes summed over, axes made.
MATRICES = (
    (r"layers\.(query|key|value)$", MuonDimensionNumbers((1,), (2, 3))),
    (r"layers\.out$", MuonDimensionNumbers((1, 2), (3,))),
    (r"layers\.(gate|up|down)$", MuonDimensionNumbers((1,), (2,))),
)
MUON_RMS = 0.2  # of Muon's updates, that of Adam's: both take the same rate and decay

MEMORY = 0.99  # of the mean gradient norm that `skip_above` compares with
WARMUP = 20  # updates from which that mean is taken before any is skipped


class SkipState(NamedTuple):
    """Of `skip_outliers`; everything but `inner` is a number."""

    inner: optax.OptState
    mean: jax.Array  # float32, exponential mean of accepted norms, to be divided by its weight
    accepted: jax.Array  # int32, updates
    skipped: jax.Array  # int32
    skipped_in_a_row: jax.Array  # int32, up to the last update


def make_schedule(c: config.Optimizer, steps: int) -> optax.Schedule:
    """Learning rate by step: linear warmup to the peak, then decay to the end at `steps`."""
    end = c.learning_rate * c.end_fraction
    decay_steps = max(1, steps - c.warmup_steps)
    decay = {
        "linear": optax.linear_schedule(c.learning_rate, end, decay_steps),
        "cosine": optax.cosine_decay_schedule(c.learning_rate, decay_steps, c.end_fraction),
        "constant": optax.constant_schedule(c.learning_rate),
    }[c.schedule]
    if not c.warmup_steps:
        return decay
    warmup = optax.linear_schedule(0.0, c.learning_rate, c.warmup_steps)
    return optax.join_schedules([warmup, decay], [c.warmup_steps])


def make_optimizer(c: config.Optimizer, steps: int) -> optax.GradientTransformation:
    """Returns the optax chain: clip, Adam or Muon, decoupled weight decay by table, schedule."""

    def decays(params: Any) -> Any:
        return _by_name(params, lambda rule: bool(rule))

    def trained(params: Any) -> Any:
        return _by_name(params, lambda rule: "freeze" if rule is None else "train")

    direction = optax.scale_by_adam(b1=c.beta1, b2=c.beta2, eps=c.epsilon, mu_dtype=c.moment_dtype)
    if c.matrices == "muon":
        direction = _muon(direction, c.moment_dtype)
    parts = [
        optax.clip_by_global_norm(c.clip) if c.clip else optax.identity(),
        direction,
        optax.add_decayed_weights(c.weight_decay, mask=decays),
    ]
    if c.skip_above:  # the schedule stays outside: it counts steps, skipped or not
        parts = [skip_outliers(optax.chain(*parts), c.skip_above)]
    train = optax.chain(*parts, optax.scale_by_learning_rate(make_schedule(c, steps)))
    return optax.multi_transform({"train": train, "freeze": optax.set_to_zero()}, trained)


def skip_outliers(
    inner: optax.GradientTransformation, above: float
) -> optax.GradientTransformation:
    """Leaves out updates whose gradient norm is not finite, or above `above` times the usual one.

    Such an update is zero and does not change the state of `inner`. The usual norm is the mean of
    those that were accepted, the last hundred or so; the first WARMUP are accepted if finite.
    """

    def init(params: Any) -> SkipState:
        zero = jnp.zeros((), jnp.int32)
        return SkipState(inner.init(params), jnp.zeros(()), zero, zero, zero)

    def update(gradients: Any, state: SkipState, params: Any = None) -> tuple[Any, SkipState]:
        norm = optax.global_norm(gradients)
        usual = state.mean / (1 - MEMORY ** state.accepted.astype(jnp.float32))
        early = state.accepted < WARMUP
        takes = jnp.isfinite(norm) & (early | (norm <= above * usual))

        def choose(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda a, b: jnp.where(takes, a, b), new, old)

        updates, after = inner.update(gradients, state.inner, params)
        updates = choose(updates, jax.tree.map(jnp.zeros_like, updates))
        mean = choose(MEMORY * state.mean + (1 - MEMORY) * norm, state.mean)
        skips = 1 - takes.astype(jnp.int32)
        return updates, SkipState(
            inner=choose(after, state.inner),
            mean=mean,
            accepted=state.accepted + 1 - skips,
            skipped=state.skipped + skips,
            skipped_in_a_row=(state.skipped_in_a_row + 1) * skips,
        )

    return optax.GradientTransformation(init, update)


def count_skipped(moments: Any) -> dict[str, jax.Array]:
    """Metrics of the updates that `optimizer.skip_above` has left out; none where it is off."""
    names = ("skipped", "skipped_in_a_row")
    found = {name: optax.tree_utils.tree_get(moments, name) for name in names}
    return {name: count for name, count in found.items() if count is not None}


def _muon(adam: optax.GradientTransformation, dtype: str) -> optax.GradientTransformation:
    """Muon for the layers' matrices (Liu et al. 2025, arXiv 2502.16982), Adam for all else."""

    def axes(params: Any) -> Any:
        rules = lambda name: (rule for pattern, rule in MATRICES if re.search(pattern, name))  # noqa: E731
        return _by_path(params, lambda name: next(rules(name), None))

    def scale(update: jax.Array, rule: MuonDimensionNumbers) -> jax.Array:
        sides = [math.prod(update.shape[axis] for axis in side) for side in rule]
        return MUON_RMS * max(sides) ** 0.5 * update

    def labels(params: Any) -> Any:
        return jax.tree.map(lambda _, rule: "muon" if rule else "adam", params, axes(params))

    muon = optax.chain(
        optax.contrib.scale_by_muon(mu_dtype=dtype, weight_dimension_numbers=axes),
        optax.stateless(lambda updates, _: jax.tree.map(scale, updates, axes(updates))),
    )
    return optax.multi_transform({"muon": muon, "adam": adam}, labels)


def _by_name(params: Any, choose: Any) -> Any:
    def of_name(name: str) -> Any:
        for pattern, rule in WEIGHT_DECAY:
            if re.search(pattern, name):
                return choose(rule)
        raise ValueError(f"{name}: no rule of optimizer.WEIGHT_DECAY matches it; add a row")

    return _by_path(params, of_name)


def _by_path(params: Any, of_name: Callable[[str], Any]) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: of_name(".".join(names_of(path))), params
    )
