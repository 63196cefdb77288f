"""The super-resolution stage: tiles, degradation, crops, training step, its way into a bundle."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from conftest import SMALL
from flax import nnx
from PIL import Image
from prepared import write_workdir

import cm3leon_jax as cm3
from cm3leon_jax import bundle, checkpoint, config
from cm3leon_jax.cli import main
from cm3leon_jax.config import Optimizer, Train, Upscaler
from cm3leon_jax.data.crops import crop_batches, draw_pair
from cm3leon_jax.data.degradation import degrade, shrink
from cm3leon_jax.models.transformer import Transformer
from cm3leon_jax.models.upscaler import RRDBNet, upscale
from cm3leon_jax.training.upscaler import init_state, make_train_step

TINY = Upscaler(
    channels=4,
    growth=2,
    blocks=1,
    crop=32,
    degradation="none",
    perceptual=0.1,
    adversarial=0.1,
    adversarial_start=5,
    discriminator_channels=4,
    discriminator_layers=1,
    optimizer=Optimizer(5e-4, warmup_steps=0, schedule="constant", weight_decay=0.0),
    train=Train(steps=6, batch=4),
)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)


def smooth(side: int) -> np.ndarray:
    """A picture without sharp edges, for which resizing is well defined."""
    return np.array(Image.fromarray(noise(8, 8)).resize((side, side), Image.Resampling.BICUBIC))


def make_network(c: Upscaler, strength: float = 1.0) -> RRDBNet:
    """Untrained; strength multiplies what the blocks add."""
    network = RRDBNet(c, rngs=nnx.Rngs(0))
    for conv in network.blocks.convs:
        conv.kernel[...] *= strength
    return network


def test_tiles_give_the_picture_of_one_tile_where_their_overlap_is_wider_than_the_sight():
    network, picture = make_network(TINY, 60.0), noise(130, 100)
    whole = upscale(network, picture, tile=200)
    tiled = upscale(network, picture, tile=100, overlap=80)  # it sees 20 pixels far
    assert whole.shape == (520, 400, 3)
    assert np.abs(whole.astype(int) - tiled).max() <= 1
    narrow = upscale(network, picture, tile=100, overlap=8)
    assert np.abs(whole.astype(int) - narrow).max() > 1


def test_an_untrained_network_nearly_repeats_what_it_reads_and_odd_sides_are_no_matter():
    picture = smooth(15)[:, :13]
    found = upscale(make_network(replace(TINY, scale=2)), picture)
    read = np.pad(picture, ((0, 1), (0, 1), (0, 0)), "edge").reshape(8, 2, 7, 2, 3).mean((1, 3))
    wanted = read.repeat(4, 0).repeat(4, 1)[:30, :26]
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).mean() < 16


@pytest.mark.parametrize("orders", [1, 2])
def test_degradation_repeats_with_its_seed_and_damages(orders):
    picture = smooth(64)
    made = [degrade(picture, 4, orders, np.random.default_rng((0, 0, i))) for i in range(12)]
    again = [degrade(picture, 4, orders, np.random.default_rng((0, 0, i))) for i in range(12)]
    np.testing.assert_array_equal(made, again)
    assert {(x.shape, x.dtype) for x in made} == {((16, 16, 3), np.dtype(np.uint8))}
    errors = [np.abs(x.astype(int) - shrink(picture, 4)).mean() for x in made]
    assert len(set(errors)) == 12
    assert 1 < np.median(errors) < 60  # something of the picture is left


@pytest.mark.parametrize("scale", [4, 2])
def test_a_pair_shows_one_place_of_the_picture(scale):
    picture, c = smooth(101), replace(TINY, scale=scale)
    for seed in range(8):  # among them all turns
        small, large = draw_pair(picture, c, np.random.default_rng(seed))
        assert (small.shape, large.shape) == ((32 // scale, 32 // scale, 3), (32, 32, 3))
        inside = slice(2, -2)  # the crop alone has other edges
        difference = shrink(large, scale).astype(int) - small
        assert np.abs(difference[inside, inside]).max() <= 3


def test_batches_are_a_function_of_their_position_and_row():
    pictures, c = [noise(40, 40) for _ in range(6)], replace(TINY, degradation="second_order")
    stream = iter(crop_batches(pictures, c))
    batches = [next(stream) for _ in range(3)]
    stream.close()
    half = crop_batches(pictures, c, rows=[2, 3])
    half.seek([8])
    part = next(iter(half))
    for name in ("images", "targets"):
        np.testing.assert_array_equal(part[name], batches[2][name][2:])
        assert not np.array_equal(batches[0][name], batches[1][name])
    with pytest.raises(
        ValueError, match=r"upscaler.crop=32: must fit into the pictures, 20 pixels"
    ):
        crop_batches([noise(20, 40)], c)


def test_a_step_has_the_losses_of_its_pictures_and_training_lowers_them():
    features = lambda x: [x[:, ::2, ::2]]  # noqa: E731
    state = jax.jit(partial(init_state, TINY))(jax.random.key(0))
    batch = next(iter(crop_batches([smooth(48)] * 4, TINY)))
    step, first, history = jax.jit(make_train_step(TINY, features)), state, []
    for _ in range(TINY.train.steps):
        state, metrics = step(state, batch)
        history.append(jax.device_get(metrics))
        if len(history) == TINY.adversarial_start:
            rested = state.critic
    made = np.asarray(jax.jit(RRDBNet.__call__)(first.model, batch["images"] / np.float32(255)))
    wanted = np.abs(made - batch["targets"] / 255).mean()
    assert history[0]["absolute"] == pytest.approx(wanted, rel=1e-4)
    total = wanted + TINY.perceptual * history[0]["perceptual"]
    assert history[0]["loss"] == pytest.approx(total, rel=1e-4)
    assert history[5]["absolute"] < 0.9 * history[0]["absolute"]
    assert [m["adversarial"] != 0 for m in history] == [False] * 5 + [True]
    jax.tree.map(np.testing.assert_array_equal, first.critic, rested)
    moved = zip(jax.tree.leaves(state.critic), jax.tree.leaves(rested))
    assert any(not np.array_equal(a, b) for a, b in moved)
    with pytest.raises(ValueError, match=r"upscaler.perceptual=0.1: needs a feature network"):
        make_train_step(TINY)


def test_the_stage_gives_the_bundle_what_enlarges_pictures_of_any_size(tmp_path):
    stage = {"channels": 4, "growth": 2, "blocks": 1, "crop": 16, "degradation": "second_order"}
    rhythm = {"steps": 2, "batch": 2, "log_every": 1, "save_every": 2}
    changes = {f"upscaler.{name}": value for name, value in stage.items()}
    changes |= {f"upscaler.train.{name}": value for name, value in rhythm.items()}
    (tmp_path / "pictures").mkdir()
    for i in range(12):
        Image.fromarray(smooth(32) // (1 + i % 3)).save(tmp_path / "pictures" / f"{i}.png")
        (tmp_path / "pictures" / f"{i}.txt").write_text("a bad cab")
    changes |= {"data.source": str(tmp_path / "pictures"), "data.held_out": 0.3, "mesh.fsdp": 1}
    c = config.replace(config.Experiment(), SMALL | changes)
    workdir = write_workdir(tmp_path / "run", c)
    bundle.write_bundle(c, workdir, Transformer(c.model, rngs=nnx.Rngs(0)))
    checkpoint.write_experiment(workdir, c)
    assert main(["train", "--stage", "upscaler", "--workdir", str(workdir)]) == 0

    generator = cm3.load(workdir / "bundle")
    pictures = [Image.fromarray(noise(5, 7)), Image.fromarray(noise(8, 8))]
    large = generator.upscale(pictures)
    assert [picture.size for picture in large] == [(28, 20), (32, 32)]
    np.testing.assert_array_equal(generator.upscale(pictures[0]), large[0])
    assert (workdir / "upscaler" / "network").exists()
    with pytest.raises(ValueError, match=r"image='2001 x 2001 pixels': use at most 4,000,000"):
        generator.upscale(np.zeros((2001, 2001, 3), np.uint8))
    with pytest.raises(ValueError, match=r"upscaler=None: use a bundle with upscaler/"):
        replace(generator, upscaler=None).upscale(pictures)
