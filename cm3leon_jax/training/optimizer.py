"""AdamW with warmup and decay; every array of a model must match a rule of the table."""

import re
from typing import Any

import jax
import optax

from cm3leon_jax import config

# First match wins; None: not trained. An array that matches nothing is an error.
WEIGHT_DECAY = (
    (r"codebook$", None),
    (r"(norm|scale|bias|positions|codes|class_token)", 0.0),
    (r"(embedding|projection|head|query|key|value|out|gate|up|down|kernel)$", 1.0),
)


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
    """Returns the optax chain: clip, Adam, decoupled weight decay by table, schedule."""

    def decays(params: Any) -> Any:
        return _by_name(params, lambda rule: bool(rule))

    def trained(params: Any) -> Any:
        return _by_name(params, lambda rule: "freeze" if rule is None else "train")

    train = optax.chain(
        optax.clip_by_global_norm(c.clip) if c.clip else optax.identity(),
        optax.scale_by_adam(b1=c.beta1, b2=c.beta2, eps=c.epsilon, mu_dtype=c.moment_dtype),
        optax.add_decayed_weights(c.weight_decay, mask=decays),
        optax.scale_by_learning_rate(make_schedule(c, steps)),
    )
    return optax.multi_transform({"train": train, "freeze": optax.set_to_zero()}, trained)


def _by_name(params: Any, choose: Any) -> Any:
    def of_leaf(path: Any, _: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
        for pattern, rule in WEIGHT_DECAY:
            if re.search(pattern, name):
                return choose(rule)
        raise ValueError(f"{name}: no rule of optimizer.WEIGHT_DECAY matches it; add a row")

    return jax.tree_util.tree_map_with_path(of_leaf, params)
