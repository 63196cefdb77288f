"""How the retriever learns: one pure step over a batch of pairs."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from cm3leon_jax.config import Retriever
from cm3leon_jax.models.clip import CLIP
from cm3leon_jax.models.losses import contrastive
from cm3leon_jax.training.optimizer import count_skipped, make_optimizer

Metrics = dict[str, jax.Array]

LARGEST_SCALE = 100.0  # of the logits; without a limit training turns unstable (CLIP section 2.5)


class RetrieverState(NamedTuple):
    """Everything that training changes; a pytree."""

    step: jax.Array  # [] int32, steps done
    model: CLIP
    optimizer: optax.OptState


def init_state(c: Retriever, pieces: int, key: jax.Array) -> RetrieverState:
    """A fresh state, the same for the same key; may run under jit. pieces as in `CLIP`."""
    model = CLIP(c, pieces, rngs=nnx.Rngs(key))
    moments = make_optimizer(c.optimizer, c.train.steps).init(model)
    return RetrieverState(jnp.zeros((), jnp.int32), model, moments)


def make_train_step(
    c: Retriever,
) -> Callable[[RetrieverState, dict[str, jax.Array]], tuple[RetrieverState, Metrics]]:
    """Builds `train_step(state, {"images": uint8 [B Y X 3], "texts": int32 [B T]})`.

    It returns (state, metrics), is pure and ready for jit with the state donated.
    """
    optimizer = make_optimizer(c.optimizer, c.train.steps)

    def loss(model: CLIP, batch: dict[str, jax.Array]) -> tuple[jax.Array, Metrics]:
        images = model.encode_images(batch["images"])
        texts = model.encode_texts(batch["texts"])
        return contrastive(images, texts, model.scale)

    def train_step(
        state: RetrieverState, batch: dict[str, jax.Array]
    ) -> tuple[RetrieverState, Metrics]:
        gradients, metrics = jax.grad(loss, has_aux=True)(state.model, batch)
        updates, moments = optimizer.update(gradients, state.optimizer, state.model)
        model = optax.apply_updates(state.model, updates)
        model.log_scale[...] = model.log_scale[...].clip(0, math.log(LARGEST_SCALE))
        metrics |= {
            "scale": state.model.scale,
            "gradient_norm": optax.global_norm(gradients),
            "pairs": jnp.float32(len(batch["images"])),
        } | count_skipped(moments)
        return RetrieverState(state.step + 1, model, moments), metrics

    return train_step
