"""How a critic learns beside the network that it judges: image tokenizer or upscaler."""

from typing import TypeAlias

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from cm3leon_jax.config import ImageTokenizer, Upscaler
from cm3leon_jax.models.discriminator import Discriminator
from cm3leon_jax.models.vqgan_losses import hinge_discriminator

Critic: TypeAlias = tuple[Discriminator | None, optax.OptState | None]
"""The network and its moments; both None without adversarial loss."""


def init_critic(
    config: ImageTokenizer | Upscaler, optimizer: optax.GradientTransformation, key: jax.Array
) -> Critic:
    """A fresh critic, where the config has a weight for it."""
    if not config.adversarial:
        return None, None
    layers = config.discriminator_layers
    network = Discriminator(config.discriminator_channels, layers, rngs=nnx.Rngs(key))
    return network, optimizer.init(nnx.state(network, nnx.Param))


def judge(
    optimizer: optax.GradientTransformation,
    critic: Discriminator,
    moments: optax.OptState | None,
    is_due: jax.Array,
    real: jax.Array,
    fake: jax.Array,
) -> tuple[Discriminator, optax.OptState | None, jax.Array]:
    """One step of the critic on pictures [B Y X 3] in [-1, 1], and its loss.

    Where it is not due, before its start, it rests and the loss is 0.
    """

    def update(critic: Discriminator, moments: optax.OptState) -> tuple:
        graph, params = nnx.split(critic)

        def loss(params: nnx.State) -> jax.Array:
            critic = nnx.merge(graph, params)
            return hinge_discriminator(critic(real), critic(jax.lax.stop_gradient(fake)))

        value, gradients = jax.value_and_grad(loss)(params)
        updates, moments = optimizer.update(gradients, moments, params)
        return nnx.merge(graph, optax.apply_updates(params, updates)), moments, value

    def rest(critic: Discriminator, moments: optax.OptState) -> tuple:
        return critic, moments, jnp.zeros(())

    return jax.lax.cond(is_due, update, rest, critic, moments)
