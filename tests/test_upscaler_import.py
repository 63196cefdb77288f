"""RRDBNet gives the pictures of a plain torch network with the same tensors, in either naming."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3leon_jax.cli import main
from cm3leon_jax.config import Mesh
from cm3leon_jax.data.networks import open_upscaler
from cm3leon_jax.interop.esrgan import fill_upscaler, read_upscaler
from cm3leon_jax.sharding import make_mesh

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402

WIDE, MORE, DEEP = 6, 3, 2


def make_tensors(
    scale: int, wide: int = WIDE, more: int = MORE, deep: int = DEEP
) -> dict[str, torch.Tensor]:
    shapes = {"conv_first": (3 * (4 // scale) ** 2, wide), "conv_last": (wide, 3)}
    shapes |= dict.fromkeys(("conv_body", "conv_up1", "conv_up2", "conv_hr"), (wide, wide))
    for block in range(deep):
        for group in (1, 2, 3):
            for i in range(5):
                name = f"body.{block}.rdb{group}.conv{i + 1}"
                shapes[name] = (wide + i * more, more if i < 4 else wide)
    torch.manual_seed(0)
    made = {}
    for name, (inputs, outputs) in shapes.items():
        made[f"{name}.weight"] = 0.2 * torch.randn(outputs, inputs, 3, 3)
        made[f"{name}.bias"] = 0.2 * torch.randn(outputs)
    return made


def upscale(tensors: dict[str, torch.Tensor], x: torch.Tensor, scale: int) -> torch.Tensor:
    """The papers' network, [B C Y X], with no module but torch's own functions."""

    def conv(name, x):
        return F.conv2d(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"], padding=1)

    x = conv("conv_first", F.pixel_unshuffle(x, 4 // scale))
    body = x
    for block in range(len({name.split(".")[1] for name in tensors if name[:5] == "body."})):
        before = body
        for group in (1, 2, 3):
            outputs = [body]
            for i in range(1, 6):
                y = conv(f"body.{block}.rdb{group}.conv{i}", torch.cat(outputs, 1))
                outputs.append(F.leaky_relu(y, 0.2))
            body = body + 0.2 * y
        body = before + 0.2 * body
    x = x + conv("conv_body", body)
    for name in ("conv_up1", "conv_up2"):
        x = F.leaky_relu(conv(name, F.interpolate(x, scale_factor=2, mode="nearest")), 0.2)
    return conv("conv_last", F.leaky_relu(conv("conv_hr", x), 0.2))


@settings(max_examples=3, deadline=None, derandomize=True)
@given(
    scale=st.sampled_from([4, 2]),
    wide=st.integers(3, 8),
    more=st.integers(1, 4),
    deep=st.integers(1, 3),
)
def test_pictures_are_those_of_torch_in_any_shape(scale, wide, more, deep):
    tensors = make_tensors(scale, wide, more, deep)
    pixels = np.random.default_rng(0).random((1, 4, 8, 3), np.float32)
    ours = fill_upscaler({f"params_ema.{name}": x.numpy() for name, x in tensors.items()})
    found = ours(pixels)
    wanted = upscale(tensors, torch.from_numpy(pixels.transpose(0, 3, 1, 2)), scale)
    difference = np.abs(found - wanted.numpy().transpose(0, 2, 3, 1)).max()
    print(f"x{scale}: maximum difference {difference:.2g}")
    assert found.shape == (1, 4 * scale, 8 * scale, 3)
    assert difference < 1e-5


def old_name(name: str) -> str:
    stem, part = name.rsplit(".", 1)
    old = {"conv_first": 0, "conv_up1": 3, "conv_up2": 6, "conv_hr": 8, "conv_last": 10}
    if stem in old:
        return f"model.{old[stem]}.{part}"
    if stem == "conv_body":
        return f"model.1.sub.{DEEP}.{part}"
    _, block, group, conv = stem.split(".")
    return f"model.1.sub.{block}.{group.upper()}.{conv}.0.{part}"


@pytest.mark.parametrize("scale", [4, 2])
def test_pictures_are_those_of_a_package(scale):
    """Golden values of spandrel 0.4.2, which needs a torchvision that fits torch: its RRDBNet of 8
    channels and 2 blocks, whose tensors, sorted by name, were drawn as they are here."""
    shapes = {old_name(n): x.shape for n, x in make_tensors(scale, 8, 32).items()}
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(0, 0.1, shapes[name]).astype(np.float32) for name in sorted(shapes)}
    pixels = np.random.default_rng(1).random((1, 6, 8, 3), np.float32)
    wanted = np.load(Path(__file__).parent / "golden" / "rrdb.npz")[f"x{scale}"]
    np.testing.assert_allclose(fill_upscaler(tensors)(pixels), wanted, atol=1e-5)


def test_the_names_of_the_first_esrgan_mean_the_same():
    import jax

    new = {name: x.numpy() for name, x in make_tensors(4).items()}
    old = {old_name(name): x for name, x in new.items()}
    jax.tree.map(np.testing.assert_array_equal, fill_upscaler(old), fill_upscaler(new))


def test_one_command_makes_a_file_the_upscaler_of_a_bundle(tmp_path, capsys):
    import jax
    from safetensors.numpy import save_file

    tensors = {name: x.numpy() for name, x in make_tensors(2).items()}
    save_file(tensors, tmp_path / "x2.safetensors")
    target = tmp_path / "bundle" / "upscaler"
    assert main(["convert", str(tmp_path / "x2.safetensors"), str(target)]) == 0
    assert capsys.readouterr().out == f"upscaler: {target}\n"
    mesh = make_mesh(Mesh(data=1, fsdp=1))
    ours, wanted = open_upscaler(target, mesh), fill_upscaler(tensors)
    jax.tree.map(np.testing.assert_array_equal, ours, wanted)
    assert ours.config == wanted.config
    assert "research only" in (target / "notice.txt").read_text()
    assert main(["convert", str(tmp_path / "x2.safetensors"), str(target)]) == 2
    assert "is there already" in capsys.readouterr().err
    again = ["convert", str(tmp_path / "x2.safetensors"), str(tmp_path / "new"), "--size", "32"]
    assert main(again) == 2
    assert "leave --size, --config and --gin_file out" in capsys.readouterr().err


def test_what_is_no_rrdbnet_is_refused_by_name():
    tensors = {name: x.numpy() for name, x in make_tensors(4).items()}
    name = "body.1.rdb3.conv5.weight"
    with pytest.raises(ValueError, match=f"{name}.*is missing"):
        fill_upscaler({key: x for key, x in tensors.items() if key != name})
    with pytest.raises(ValueError, match=r"rdb3.conv5.weight shape=\(6, 17, 3, 3\): use \(6, 18"):
        fill_upscaler(tensors | {name: tensors[name][:, 1:]})
    with pytest.raises(ValueError, match=r"'more\.weight': is no part"):
        fill_upscaler(tensors | {"more.weight": np.zeros(1)})
    with pytest.raises(ValueError, match="reads"):
        fill_upscaler(tensors | {"conv_first.weight": np.zeros((6, 5, 3, 3))})


def test_files_are_read_strictly(tmp_path):
    from safetensors.numpy import save_file

    tensors = {name: x.numpy() for name, x in make_tensors(4).items()}
    path = tmp_path / "x4.safetensors"
    save_file(tensors, path)
    found, wanted = read_upscaler(path), fill_upscaler(tensors)
    np.testing.assert_array_equal(found.first.kernel, wanted.first.kernel)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match="it is cut off"):
        read_upscaler(path)
    path.rename(tmp_path / "x4.pth")
    with pytest.raises(ValueError, match=r"is a pickle.*cm3leon convert --from_torch .*x4\.pth"):
        read_upscaler(tmp_path / "x4.pth")
