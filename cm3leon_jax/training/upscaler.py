"""How the upscaler learns: one pure step over small pictures and the large ones they came from."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from cm3leon_jax.config import Upscaler
from cm3leon_jax.models.discriminator import Discriminator
from cm3leon_jax.models.upscaler import RRDBNet
from cm3leon_jax.models.vqgan_losses import Features, hinge_generator, perceptual, psnr
from cm3leon_jax.training.critic import init_critic, judge
from cm3leon_jax.training.optimizer import count_skipped, make_optimizer

Metrics = dict[str, jax.Array]


class UpscalerState(NamedTuple):
    """Everything that training changes; a pytree. The critic is None without adversarial loss."""

    step: jax.Array  # [] int32, steps done
    model: RRDBNet
    optimizer: optax.OptState
    critic: Discriminator | None
    critic_optimizer: optax.OptState | None


def init_state(c: Upscaler, key: jax.Array) -> UpscalerState:
    """A fresh state, the same for the same key; may run under jit."""
    model = RRDBNet(c, rngs=nnx.Rngs(jax.random.fold_in(key, 0)))
    optimizer = make_optimizer(c.optimizer, c.train.steps)
    critic = init_critic(c, optimizer, jax.random.fold_in(key, 1))
    return UpscalerState(jnp.zeros((), jnp.int32), model, optimizer.init(model), *critic)


def make_train_step(
    c: Upscaler, features: Features | None = None
) -> Callable[[UpscalerState, dict[str, jax.Array]], tuple[UpscalerState, Metrics]]:
    """Builds `train_step(state, {"images": uint8 [B y x 3], "targets": uint8 [B Y X 3]})`.

    It returns (state, metrics), is pure and ready for jit with the state donated. `features` is
    needed with a perceptual weight.
    """
    if c.perceptual and features is None:
        rule = "needs a feature network: pass features= or set it to 0"
        raise ValueError(f"upscaler.perceptual={c.perceptual}: {rule}")
    optimizer = make_optimizer(c.optimizer, c.train.steps)

    def train_step(
        state: UpscalerState, batch: dict[str, jax.Array]
    ) -> tuple[UpscalerState, Metrics]:
        small = batch["images"].astype(jnp.float32) / 255
        targets = batch["targets"].astype(jnp.float32) / 127.5 - 1
        fooling = state.step >= c.adversarial_start

        def loss(model: RRDBNet) -> tuple[jax.Array, tuple[jax.Array, Metrics]]:
            images = 2 * model(small, unroll=jax.default_backend() == "cpu") - 1
            metrics = {"absolute": jnp.abs(images - targets).mean() / 2}  # of values in [0, 1]
            total = metrics["absolute"]
            if c.perceptual and features is not None:
                metrics["perceptual"] = perceptual(images, targets, features)
                total += c.perceptual * metrics["perceptual"]
            if state.critic is not None:
                critic = state.critic
                fool = lambda: hinge_generator(critic(images))  # noqa: E731
                metrics["adversarial"] = jax.lax.cond(fooling, fool, lambda: jnp.zeros(()))
                total += c.adversarial * metrics["adversarial"]
            return total, (images, metrics | {"loss": total, "psnr": psnr(images, targets)})

        gradients, (images, metrics) = jax.grad(loss, has_aux=True)(state.model)
        updates, moments = optimizer.update(gradients, state.optimizer, state.model)
        model = optax.apply_updates(state.model, updates)
        critic, critic_moments = state.critic, state.critic_optimizer
        if critic is not None:
            critic, critic_moments, metrics["discriminator"] = judge(
                optimizer, critic, critic_moments, fooling, targets, images
            )
        metrics |= {
            "gradient_norm": optax.global_norm(gradients),
            "images": jnp.float32(len(targets)),
        } | count_skipped(moments)
        return UpscalerState(state.step + 1, model, moments, critic, critic_moments), metrics

    return train_step
