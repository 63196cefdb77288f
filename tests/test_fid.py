"""FID, KID and their feature network against torch-fidelity, by golden values."""

import jax
import numpy as np
import pytest
from metric_oracles import GOLDEN, SHAPES, make_features, make_pictures, make_state

from cm3leon_jax.evaluation import fid
from cm3leon_jax.evaluation.features import FeatureNetwork, resize
from cm3leon_jax.interop.inception import fold_state, read_inception
from cm3leon_jax.models.inception import kernel_shapes

WANTED = np.load(GOLDEN / "fid.npz")
ONE, OTHER = make_features(0), make_features(1)


@pytest.fixture(scope="module")
def state() -> dict[str, np.ndarray]:
    return make_state(kernel_shapes())


def test_features_are_those_of_torch_fidelity_with_the_same_weights(state, monkeypatch):
    monkeypatch.setattr("cm3leon_jax.evaluation.features.BATCH", 1)
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:2])
    network = FeatureNetwork(fold_state(state), "torch-fidelity")
    pictures = make_pictures(*SHAPES[0])
    found = network(pictures[[0, 1, 0]])  # the third stands alone in a batch of two devices
    np.testing.assert_allclose(found[:2], WANTED["features"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[2], found[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("resampling", "name", "tolerance"),
    [("torch-fidelity", "tensorflow", 1e-4), ("pytorch-fid", "pytorch", 1e-2)],
)
def test_pictures_are_resized_as_in_each_reference(resampling, name, tolerance):
    for number, shape in enumerate(SHAPES):
        resized = np.asarray(resize(make_pictures(*shape), resampling))[0, ::37, ::23]
        scale = 255 if name == "pytorch" else 1
        wanted = WANTED[f"{name}_{number}"] * scale
        np.testing.assert_allclose(resized, wanted, atol=tolerance)


def test_fid_is_that_of_torch_fidelity_however_the_set_is_cut(monkeypatch):
    whole, other = fid.Statistics.of(ONE), fid.gather([OTHER])
    monkeypatch.setattr(fid, "BLOCK", 30)
    parts = fid.gather([ONE[:1], ONE[1:40], ONE[40:]])
    np.testing.assert_allclose(parts.covariance, np.cov(ONE.astype(float), rowvar=False))
    for found in (whole, parts):
        assert fid.frechet_distance(found, other) == pytest.approx(float(WANTED["fid"]), rel=1e-9)


def test_kid_is_that_of_torch_fidelity_with_the_same_subsets():
    found = fid.kernel_distance(ONE, OTHER, subsets=10, size=20)
    np.testing.assert_allclose(found, WANTED["kid"], rtol=1e-9)
    with pytest.raises(ValueError, match=r"size=61: use 2 to 60"):
        fid.kernel_distance(ONE, OTHER, size=61)


@pytest.mark.parametrize("count", [60, 5])  # 5 vectors of 16 numbers: no full rank
def test_fid_of_a_set_with_itself_is_zero(count):
    found = fid.Statistics.of(ONE[:count])
    assert fid.frechet_distance(found, found) < 1e-5 * np.trace(found.covariance)


def test_statistics_come_back_from_their_file_and_nothing_else_does(tmp_path):
    found = fid.Statistics.of(ONE)
    fid.save_statistics(tmp_path / "a.npz", found, {"reference": "abc"})
    again, about = fid.load_statistics(tmp_path / "a.npz")
    assert about == {"reference": "abc"}
    assert again.count == 60
    np.testing.assert_array_equal(again.scatter, found.scatter)
    np.savez(tmp_path / "b.npz", mu=found.mean, sigma=found.covariance)
    with pytest.raises(ValueError, match="use statistics that cm3leon wrote"):
        fid.load_statistics(tmp_path / "b.npz")


def test_weights_are_read_from_safetensors_and_checked(state, tmp_path):
    from safetensors.numpy import save_file

    path, pickle = tmp_path / "x.safetensors", tmp_path / "x.pth"
    save_file({n: x for n, x in state.items() if n.startswith("Conv2d_1a")}, path)
    with pytest.raises(ValueError, match=r"Conv2d_2a_3x3.conv.weight=None: use the public file"):
        read_inception(path)  # the first one was there
    path.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="copy it anew"):
        read_inception(path)
    path.rename(pickle)
    with pytest.raises(ValueError, match=r"is a pickle.*cm3leon convert --from_torch"):
        read_inception(pickle)
    with pytest.raises(FileNotFoundError, match="--inception takes"):
        read_inception(path)
