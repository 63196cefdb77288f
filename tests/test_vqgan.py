"""The image tokenizer: shapes, quantizer against NumPy, critic, training step."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cm3leon_jax.config import ImageTokenizer, Optimizer, Train
from cm3leon_jax.models.discriminator import Discriminator
from cm3leon_jax.models.vqgan import VQGAN, Quantizer, fold, unfold
from cm3leon_jax.models.vqgan_losses import adversarial_weight, psnr
from cm3leon_jax.training.image_tokenizer import init_state, make_train_step

TINY = ImageTokenizer(
    size=16,
    patch=2,
    channels=16,
    multipliers=(1, 2),
    blocks=1,
    groups=4,
    latent=8,
    codes=32,
    width=6,
    normalize=True,
    quantizer="ema",
    bypass=0.2,
    squared=1.0,
    absolute=0.2,
    discriminator_channels=8,
    discriminator_layers=1,
    decay=0.9,
    optimizer=Optimizer(3e-3, warmup_steps=5, schedule="cosine", beta2=0.95, weight_decay=0.05),
    train=Train(steps=150, batch=8),
)

SMALLEST = replace(TINY, patch=4, multipliers=(1,))  # XLA compiles its step soonest
CRITICAL = replace(
    SMALLEST,
    adversarial=0.5,
    adversarial_start=2,
    optimizer=replace(TINY.optimizer, warmup_steps=0),
)


@pytest.fixture(scope="module")
def model() -> VQGAN:
    return jax.jit(lambda key: VQGAN(TINY, rngs=nnx.Rngs(key)))(jax.random.key(0))


@pytest.fixture(scope="module")
def images() -> jax.Array:
    return jax.random.uniform(jax.random.key(1), (2, 16, 16, 3), minval=-1)


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """Eight plain-coloured pictures with a plain square: uint8 [8, 16, 16, 3]."""
    rng = np.random.default_rng(0)
    images = np.empty((8, 16, 16, 3), np.uint8)
    images[:] = rng.integers(0, 256, (8, 1, 1, 3))
    for image, (y, x) in zip(images, rng.integers(0, 9, (8, 2))):
        image[y : y + 8, x : x + 8] = rng.integers(0, 256, 3)
    return images


class Run:
    """Trains afresh on the same pictures as often as asked; compiles once."""

    def __init__(self, config: ImageTokenizer, pictures: np.ndarray, **options):
        self.pictures = pictures
        self.init = jax.jit(partial(init_state, config))
        self.step = jax.jit(make_train_step(config, **options), donate_argnums=0)

    def __call__(self, steps: int):
        """The state after so many steps, and the metrics of each."""
        state, history = self.init(jax.random.key(0)), []
        for _ in range(steps):
            state, metrics = self.step(state, {"images": self.pictures})
            history.append(metrics)
        return state, jax.device_get(history)


@pytest.fixture(scope="module")
def run(pictures):
    return Run(SMALLEST, pictures)


def test_images_become_a_grid_of_codes_and_images_again(model, images):
    codes = jax.jit(VQGAN.encode)(model, images)
    assert codes.shape == (2, 4, 4)
    assert codes.dtype == jnp.int32
    again = jax.jit(VQGAN.decode)(model, codes)
    assert again.shape == (2, 16, 16, 3)
    assert jnp.abs(again).max() <= 1


def test_the_paper_size_model_makes_1024_tokens():
    config = ImageTokenizer()
    model = jax.eval_shape(lambda key: VQGAN(config, rngs=nnx.Rngs(key)), jax.random.key(0))
    images = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    assert jax.eval_shape(VQGAN.encode, model, images).shape == (1, 32, 32)
    assert model.quantizer.codes.shape == (8192, 256)


def test_attention_stands_only_at_the_chosen_grid_sides():
    config = replace(TINY, attention=(4,))
    model = jax.eval_shape(lambda key: VQGAN(config, rngs=nnx.Rngs(key)), jax.random.key(0))
    assert [len(level.attentions) for level in model.encoder.levels] == [0, 1]
    assert [len(level.attentions) for level in model.decoder.levels] == [2, 0]
    images = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    assert jax.eval_shape(VQGAN.encode, model, images).shape == (1, 4, 4)


def test_folding_patches_is_undone_by_unfolding():
    images = jax.random.normal(jax.random.key(0), (2, 8, 12, 3))
    patches = fold(images, 4)
    assert patches.shape == (2, 2, 3, 48)
    np.testing.assert_array_equal(patches[1, 1, 2], images[1, 4:8, 8:12].reshape(-1))
    np.testing.assert_array_equal(unfold(patches, 4), images)


def test_codes_of_the_patch_encoder_see_their_own_pixels_only(images):
    config = replace(TINY, encoder="patch")
    model = VQGAN(config, rngs=nnx.Rngs(0))
    before = model.latents(images)
    after = model.latents(images.at[:, 4:8, 8:12].set(0.5))
    moved = jnp.abs(after - before).max(axis=(0, 3)) > 1e-6
    assert moved[1, 2]
    assert int(moved.sum()) == 1


@pytest.mark.parametrize("normalize", [True, False])
def test_codes_are_the_nearest_neighbours(normalize):
    quantizer = Quantizer(replace(TINY, normalize=normalize), rngs=nnx.Rngs(0))
    latents = np.random.default_rng(0).normal(size=(3, 4, 4, 6)).astype(np.float32)
    distances = ((latents[..., None, :] - np.asarray(quantizer.codebook)) ** 2).sum(-1)
    np.testing.assert_array_equal(quantizer.nearest(latents), distances.argmin(-1))


def test_of_equally_near_codes_the_first_is_taken():
    quantizer = Quantizer(TINY, rngs=nnx.Rngs(0))
    quantizer.codes[...] = jnp.ones_like(quantizer.codes[...])
    assert (quantizer.nearest(jnp.ones((2, 6))) == 0).all()


def test_the_gradient_reaches_the_encoder_through_the_quantizer(model, images):
    gradient = jax.jit(jax.grad(lambda m: jnp.square(m(images).images).mean()))(model)
    assert jnp.abs(gradient.encoder.conv_in.kernel[...]).max() > 0


def test_a_training_pass_paints_what_the_codes_say(model, images):
    output = jax.jit(model)(images)
    decoded = jax.jit(VQGAN.decode)(model, output.codes)
    np.testing.assert_allclose(output.images.clip(-1, 1), decoded, atol=1e-5)


def test_bypassed_images_are_painted_from_their_latents(model, images):
    output = jax.jit(model)(images, jnp.array([True, False]).reshape(2, 1, 1, 1))
    whole = jax.jit(lambda m, x: m.decoder(m.post_quant_conv(x)))(model, output.latents)
    np.testing.assert_allclose(output.images[0], whole[0], atol=1e-5)
    assert jnp.abs(output.images[1] - whole[1]).max() > 1e-3


def test_moving_average_codes_equal_a_numpy_oracle():
    config = replace(TINY, normalize=False, codes=4, width=2, restart=0.0, decay=0.9)
    quantizer = Quantizer(config, rngs=nnx.Rngs(0))
    book = np.asarray(quantizer.codebook, np.float64)
    rng = np.random.default_rng(0)
    credit, uses, sums = np.ones(4), np.zeros(4), book.copy()
    for _ in range(3):
        latents = rng.normal(size=(2, 3, 3, 2))
        codes = rng.integers(0, 3, (2, 3, 3))  # code 3 is never hit and must not move
        quantizer.follow(jnp.asarray(latents), jnp.asarray(codes), jax.random.key(0))
        for k in range(4):
            hit = latents[codes == k]
            credit[k] = 0.9 * credit[k] + 0.1 * len(hit) / (18 / 4)
            uses[k] = 0.9 * uses[k] + 0.1 * len(hit) / (18 / 4)
            sums[k] = 0.9 * sums[k] + 0.1 * hit.sum(0) / (18 / 4)
    np.testing.assert_allclose(quantizer.uses[...], uses, rtol=1e-5)
    np.testing.assert_allclose(quantizer.codebook, sums / credit[:, None], rtol=1e-4)
    np.testing.assert_allclose(quantizer.codebook[3], book[3], rtol=1e-5)
    share = uses[:3] / uses.sum()
    report = quantizer.report()
    np.testing.assert_allclose(report["perplexity"], np.exp(-(share * np.log(share)).sum()))
    assert report["usage"] == 0.75


@pytest.mark.parametrize("kind", ["ema", "gradient"])
def test_dead_codes_restart_on_latents_of_the_batch(kind):
    config = replace(TINY, quantizer=kind, restart=0.5, decay=0.5)
    quantizer = Quantizer(config, rngs=nnx.Rngs(0))
    latents = jnp.asarray(np.eye(6, dtype=np.float32)[None, :4].repeat(3, 0))  # [3, 4, 6], unit
    codes = jnp.arange(12, dtype=jnp.int32).reshape(3, 4) % 4
    for _ in range(2):
        quantizer.follow(latents, codes, jax.random.key(0))
    restarted = np.asarray(quantizer.codebook)[4:]
    assert set(restarted.argmax(-1)) <= {0, 1, 2, 3}
    np.testing.assert_allclose(restarted.max(-1), 1, rtol=1e-5)
    assert (np.asarray(quantizer.credit)[4:] == 1).all()
    assert quantizer.report()["usage"] == 4 / 32  # a restart alone is no use


def test_eight_pictures_are_learnt(run, pictures):
    state, history = run(SMALLEST.train.steps)
    assert int(state.step) == SMALLEST.train.steps
    assert history[0]["psnr"] < 15
    assert history[-1]["psnr"] > 24
    assert history[-1]["usage"] > 0.5
    targets = pictures / 127.5 - 1
    decoded = jax.jit(lambda m: m.decode(m.encode(targets)))(state.model)
    assert psnr(decoded, targets) > 24


def test_the_same_key_gives_the_same_result(run):
    jax.tree.map(np.testing.assert_array_equal, run(3), run(3))


def test_codes_that_follow_gradients_learn_too_beside_a_perceptual_loss(pictures):
    config = replace(SMALLEST, quantizer="gradient", normalize=False, perceptual=2.0)
    _, history = Run(config, pictures, features=lambda images: [images])(60)
    assert history[-1]["psnr"] > history[0]["psnr"] + 3
    parts = history[0]
    wanted = parts["reconstruction"] + 2 * parts["perceptual"] + 0.25 * parts["commitment"]
    assert min(parts["perceptual"], parts["codebook"]) > 0
    np.testing.assert_allclose(parts["loss"], wanted + parts["codebook"], rtol=1e-5)


def test_a_step_keeps_the_structure_of_the_state(pictures):
    state = jax.eval_shape(partial(init_state, CRITICAL), jax.random.key(0))
    batch = {"images": jax.ShapeDtypeStruct(pictures.shape, np.uint8)}
    after, _ = jax.eval_shape(make_train_step(CRITICAL), state, batch)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    forms = [[(x.shape, x.dtype) for x in jax.tree.leaves(tree)] for tree in (after, state)]
    assert forms[0] == forms[1]


def test_the_critic_rests_until_its_start_step(pictures):
    run = Run(CRITICAL, pictures)
    (first, _), (resting, quiet), (acting, loud) = run(0), run(2), run(3)
    jax.tree.map(np.testing.assert_array_equal, first.critic, resting.critic)
    assert all(m["adversarial"] == 0 and m["discriminator"] == 0 for m in quiet)
    assert loud[-1]["adversarial"] != 0
    assert loud[-1]["discriminator"] > 0
    moved = zip(jax.tree.leaves(acting.critic), jax.tree.leaves(resting.critic))
    assert any((a != b).any() for a, b in moved)


def test_the_critic_judges_patches():
    critic = jax.eval_shape(lambda: Discriminator(64, 3, rngs=nnx.Rngs(0)))
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    assert jax.eval_shape(lambda c, x: c(x), critic, images).shape == (1, 6, 6, 1)


def test_the_adversarial_weight_is_the_ratio_of_last_layer_gradients(model):
    features = jax.random.normal(jax.random.key(1), (2, 8, 8, 16))
    weight = adversarial_weight(
        model.decoder, features, lambda x: 3 * x.mean(), lambda x: -x.mean()
    )
    np.testing.assert_allclose(weight, 3, rtol=1e-2)


def test_a_perceptual_weight_without_features_is_refused():
    with pytest.raises(ValueError, match=r"perceptual = 0.5 needs a feature network"):
        make_train_step(replace(TINY, perceptual=0.5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 18}, "size=18: must be a multiple of .* = 4 pixels"),
        ({"blocks": 0}, "blocks=0: must be >= 1"),
        ({"groups": 3}, "groups=3: must divide every level"),
        ({"attention": (5,)}, "attention=.5,.: must be among grid sides"),
        ({"quantizer": "fsq"}, "quantizer='fsq': use one of 'gradient', 'ema'"),
        ({"decay": 1.0}, "decay=1.0: must be >= 0 and < 1"),
        ({"squared": 0.0, "absolute": 0.0}, "absolute=0.0: must be > 0"),
        ({"encoder": "vit"}, "encoder='vit': use one of 'convolutional', 'patch'"),
        ({"train": Train(accumulate=2, batch=8)}, "train.accumulate=2: only the transformer"),
        ({"multipliers": ()}, "multipliers=.*: give one number >= 1 per level"),
    ],
)
def test_wrong_settings_are_named(change, message):
    with pytest.raises(ValueError, match=f"image_tokenizer.{message}"):
        replace(TINY, **change)
