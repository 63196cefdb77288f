"""How the image tokenizer learns: one pure step for encoder, quantizer, decoder and critic."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from cm3leon_jax.config import ImageTokenizer
from cm3leon_jax.models.discriminator import Discriminator
from cm3leon_jax.models.vqgan import VQGAN
from cm3leon_jax.models.vqgan_losses import (
    Features,
    adversarial_weight,
    hinge_generator,
    perceptual,
    psnr,
    reconstruction,
)
from cm3leon_jax.training.critic import init_critic, judge
from cm3leon_jax.training.optimizer import count_skipped, make_optimizer

Metrics = dict[str, jax.Array]


class TokenizerState(NamedTuple):
    """Everything that training changes; a pytree. The critic is None without adversarial loss."""

    step: jax.Array  # [] int32, steps done
    model: VQGAN
    optimizer: optax.OptState
    critic: Discriminator | None
    critic_optimizer: optax.OptState | None


def init_state(config: ImageTokenizer, key: jax.Array) -> TokenizerState:
    """A fresh state, the same for the same key; may run under jit."""
    model = VQGAN(config, rngs=nnx.Rngs(jax.random.fold_in(key, 0)))
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    critic, critic_state = init_critic(config, optimizer, jax.random.fold_in(key, 1))
    model_state = optimizer.init(nnx.state(model, nnx.Param))
    return TokenizerState(jnp.zeros((), jnp.int32), model, model_state, critic, critic_state)


def make_train_step(
    config: ImageTokenizer, features: Features | None = None
) -> Callable[[TokenizerState, dict[str, jax.Array]], tuple[TokenizerState, Metrics]]:
    """Builds `train_step(state, {"images": uint8 [B, Y, X, 3]}) -> (state, metrics)`.

    The step is pure, ready for jit with the state donated; all randomness follows from
    `train.seed` and the step number. `features` is needed with a perceptual weight.
    """
    if config.quantizer == "gumbel":
        rule = "is for weights of others and not trained; use gradient or ema"
        raise ValueError(f"image_tokenizer.quantizer='gumbel': {rule}")
    if config.perceptual and features is None:
        raise ValueError(
            f"image_tokenizer.perceptual = {config.perceptual} needs a feature network: "
            "pass features= or set it to 0"
        )
    optimizer = make_optimizer(config.optimizer, config.train.steps)

    def bypass(step: jax.Array, count: int, key: jax.Array) -> jax.Array | None:
        """[B, 1, 1, 1]: which images skip the quantizer; all at step 0, none when annealed."""
        if not config.bypass:
            return None
        share = 1 - step / (config.bypass * config.train.steps)
        return jax.random.bernoulli(key, share.clip(0, 1), (count, 1, 1, 1))

    def fidelity(images: jax.Array, targets: jax.Array) -> tuple[jax.Array, Metrics]:
        loss = reconstruction(images, targets, config)
        parts = {"reconstruction": loss}
        if config.perceptual and features is not None:
            parts["perceptual"] = perceptual(images, targets, features)
            loss = loss + config.perceptual * parts["perceptual"]
        return loss, parts

    def train_step(
        state: TokenizerState, batch: dict[str, jax.Array]
    ) -> tuple[TokenizerState, Metrics]:
        targets = batch["images"].astype(jnp.float32) / 127.5 - 1
        skip_key, restart_key = jax.random.split(
            jax.random.fold_in(jax.random.key(config.train.seed), state.step)
        )
        skip = bypass(state.step, len(targets), skip_key)
        fooling = state.step >= config.adversarial_start
        graph, params, *rest = nnx.split(state.model, nnx.Param, ...)

        def total(params: nnx.State) -> tuple[jax.Array, tuple[Any, Metrics]]:
            model = nnx.merge(graph, params, *rest)
            output = model(targets, skip)
            loss, metrics = fidelity(output.images, targets)
            if state.critic is not None:
                critic = state.critic

                def fool(images: jax.Array) -> jax.Array:
                    return hinge_generator(critic(images))

                def weighted() -> jax.Array:
                    weight = adversarial_weight(
                        model.decoder, output.features, lambda x: fidelity(x, targets)[0], fool
                    )
                    return config.adversarial * weight * fool(output.images)

                metrics["adversarial"] = jax.lax.cond(fooling, weighted, lambda: jnp.zeros(()))
                loss = loss + metrics["adversarial"]
            loss = loss + config.commitment * output.commitment + output.codebook
            metrics |= {"commitment": output.commitment, "codebook": output.codebook, "loss": loss}
            return loss, (output, metrics)

        gradients, (output, metrics) = jax.grad(total, has_aux=True)(params)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, params)
        model = nnx.merge(graph, optax.apply_updates(params, updates), *rest)
        model.quantizer.follow(output.latents, output.codes, restart_key)

        critic, critic_optimizer = state.critic, state.critic_optimizer
        if critic is not None:
            critic, critic_optimizer, metrics["discriminator"] = judge(
                optimizer, critic, critic_optimizer, fooling, targets, output.images
            )
        metrics |= model.quantizer.report()
        metrics |= {
            "psnr": psnr(output.images, targets),
            "gradient_norm": optax.global_norm(gradients),
            "images": jnp.float32(len(targets)),
        } | count_skipped(optimizer_state)
        step = state.step + 1
        return TokenizerState(step, model, optimizer_state, critic, critic_optimizer), metrics

    return train_step
