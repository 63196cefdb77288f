"""Other people's image tokenizers: same codes, same pixels, and what is wrong is named."""

import ast
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from vq_oracles import CODES, DIFFUSERS, GOLDEN, SIDE, draw, pictures

from cm3leon_jax import checkpoint, cli, config
from cm3leon_jax.interop import torch_file, vq
from cm3leon_jax.interop.cards import read_licence
from cm3leon_jax.interop.convert import convert
from cm3leon_jax.interop.shards import write_file
from cm3leon_jax.models.vqgan import VQGAN

FAMILIES = ("diffusers", "taming", "gumbel", "llamagen")
FAR = 1e-5  # largest difference of a pixel; measured: 2e-6


def names(family):
    """Names and shapes in a file of the family, as the original library has them."""
    rows = (row.split(" ", 1) for row in np.load(GOLDEN)[f"{family}_names"].tolist())
    return {name: tuple(ast.literal_eval(shape)) for name, shape in rows}


def write(folder, family, change=lambda shapes: None):
    """A source with weights drawn by name; `change` edits the shapes first."""
    folder.mkdir(exist_ok=True)
    shapes = names(family)
    change(shapes)
    if family in ("taming", "gumbel"):
        shapes["loss.discriminator.weight"] = (3,)
    forms = {name: (shape, np.dtype(np.float32)) for name, shape in shapes.items()}
    path = folder / "diffusion_pytorch_model.safetensors"
    write_file(path, forms, lambda name: draw(name, shapes[name]))
    if family == "diffusers":
        (folder / "config.json").write_text(json.dumps(DIFFUSERS))
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_codes_and_pixels_are_those_of_the_original(family, tmp_path):
    golden = np.load(GOLDEN)
    c, named, digests = vq.read_tokenizer(write(tmp_path, family), SIDE)
    assert len(*digests.values()) == 64
    form = jax.eval_shape(lambda key: VQGAN(c, rngs=nnx.Rngs(key)), jax.random.key(0))
    model = checkpoint.from_names(form, jax.tree.map(jnp.asarray, named))
    codes = golden[f"{family}_codes"]
    assert len(np.unique(codes)) > 4  # else equal codes say little

    @jax.jit
    def run(model, images, codes):
        pixels = model.decoder(model.post_quant_conv(model.codebook[codes]))
        return model.encode(images), pixels

    found, pixels = run(model, pictures(), codes)
    np.testing.assert_array_equal(found, codes)
    np.testing.assert_allclose(pixels, golden[f"{family}_pixels"], atol=FAR)


@settings(max_examples=2, deadline=None, derandomize=True)
@given(
    multipliers=st.sampled_from([(1,), (2, 1), (1, 1, 2)]),
    blocks=st.integers(1, 2),
    attends=st.booleans(),
    width=st.integers(2, 6),
)
def test_codes_are_those_of_transformers_in_any_shape(multipliers, blocks, attends, width):
    """Of Chameleon's image tokenizer, whose names are taming's."""
    torch = pytest.importorskip("torch", reason="transformers has the original")
    pytest.importorskip("transformers", reason="transformers has the original")
    from transformers import ChameleonVQVAE, ChameleonVQVAEConfig

    form = {"size": 8, "channels": 32, "multipliers": multipliers, "blocks": blocks}
    form |= {"attention": (8,) if attends else (), "latent": 8, "codes": CODES, "width": width}
    c = config.ImageTokenizer(**form)
    theirs = ChameleonVQVAE(
        ChameleonVQVAEConfig(
            embed_dim=width,
            num_embeddings=CODES,
            latent_channels=8,
            resolution=8,
            base_channels=32,
            channel_multiplier=list(multipliers),
            num_res_blocks=blocks,
            attn_resolutions=[8] if attends else None,
        )
    ).eval()
    rows = {row.theirs: row for row in vq.rows(vq.TAMING, c)}
    named, state = {}, theirs.state_dict()
    for name, row in rows.items():
        array = draw(name, row.their_shape)
        named[row.ours] = row.take(array)
        if name in state:
            state[name].copy_(torch.from_numpy(array))
    assert rows.keys() >= state.keys()
    made = jax.eval_shape(lambda: VQGAN(c, rngs=nnx.Rngs(0)))
    model = checkpoint.from_names(made, jax.tree.map(jnp.asarray, vq.complete(named, c)))
    images = pictures()[:, :8, :8]
    with torch.no_grad():
        wanted = theirs.encode(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).image_tokens
    found = np.asarray(jax.jit(VQGAN.encode)(model, images)).ravel()
    np.testing.assert_array_equal(found, wanted.numpy().ravel())
    assert len(np.unique(found)) > 1


def test_a_converted_image_tokenizer_begins_a_work_directory(tmp_path, capsys):
    source, target = write(tmp_path / "vq", "llamagen"), tmp_path / "run"
    assert cli.main(["convert", str(source), str(target), "--size", "256"]) == 2  # 128**2 tokens
    assert "--config" in capsys.readouterr().err
    assert not target.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["vq"]  # and nothing half-written
    line = ["convert", str(source), str(target), "--size", str(SIDE), "--config", "tiny"]
    assert cli.main(line) == 0, capsys.readouterr().err
    experiment = checkpoint.read_experiment(target)
    assert (experiment.model.image_codes, experiment.model.image_tokens) == (CODES, 64)
    assert experiment.image_tokenizer.normalize
    assert (target / "image_tokenizer" / "network").is_dir()
    assert "sha256" in (target / "card.md").read_text()


def test_a_size_that_the_source_says_otherwise_is_refused(tmp_path):
    with pytest.raises(ValueError, match=f"size={SIDE + 8}: config.json says"):
        vq.read_tokenizer(write(tmp_path / "vq", "diffusers"), SIDE + 8)


def test_a_file_is_what_its_tensors_say_and_not_what_lies_beside_it(tmp_path, capsys):
    folder = write(tmp_path / "vq", "llamagen")
    (source,) = folder.glob("*.safetensors")
    (folder / "config.json").write_text('{"model_type": "chameleon"}')
    (folder / "LICENSE").write_text("MIT License\n")
    line = ["convert", str(source), str(tmp_path / "run"), "--size", str(SIDE), "--config", "tiny"]
    assert cli.main(line) == 0, capsys.readouterr().err
    assert "not stated" in (tmp_path / "run" / "card.md").read_text()


@pytest.mark.parametrize(
    ("name", "text", "licence", "is_open"),
    [
        ("LICENSE", "\n  MIT License\n\nCopyright", "mit", True),
        ("LICENSE.txt", "Apache License\nVersion 2.0", "apache-2.0", True),
        ("LICENSE", "Chameleon Research License", "Chameleon Research License", False),
        ("README.md", "---\nlicense:\n- mit\n---\n", "mit", True),
        ("README.md", '---\nlicense: "cc-by-nc-4.0"\n---\n', "cc-by-nc-4.0", False),
        ("README.md", "no front matter", "", False),
    ],
)
def test_licences_are_read_from_a_folder(tmp_path, name, text, licence, is_open):
    (tmp_path / name).write_text(text)
    found = read_licence(tmp_path)
    assert (found.name, not found.notice) == (licence, is_open)


def _rename(shapes):
    shapes["encoder.conv_in.weigth"] = shapes.pop("encoder.conv_in.weight")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda shapes: shapes.pop("quant_conv.bias"), "tensor quant_conv.bias: is missing"),
        (lambda shapes: shapes.update({"extra": (2,)}), "tensor extra: of shape (2,) is left over"),
        (
            lambda shapes: shapes.update({"decoder.conv_in.bias": (7,)}),
            "tensor decoder.conv_in.bias: has shape (7,), wanted (64,) by the config's",
        ),
        (_rename, "tensor encoder.conv_in.weight: is missing"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(change, said, tmp_path):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        convert(write(tmp_path / "vq", "taming", change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_training_refuses_codes_that_a_layer_scores():
    from cm3leon_jax.training.image_tokenizer import make_train_step

    with pytest.raises(ValueError, match=r"image_tokenizer\.quantizer='gumbel'"):
        make_train_step(config.ImageTokenizer(quantizer="gumbel"))


def test_a_pickle_is_refused_and_read_only_by_a_process_of_its_own(tmp_path, capsys):
    torch = pytest.importorskip("torch", reason="torch writes the pickle")
    source, target = tmp_path / "last.ckpt", tmp_path / "last.safetensors"
    shapes = names("taming")
    state = {name: torch.from_numpy(draw(name, shape)) for name, shape in shapes.items()}
    torch.save({"state_dict": state, "epoch": 3}, source)
    assert cli.main(["convert", str(source), str(tmp_path / "run")]) == 2
    line = capsys.readouterr().err
    assert "is a pickle, which can run any code" in line
    assert "--from_torch" in line
    assert cli.main(["convert", "--from_torch", str(source), str(target)]) == 0
    c, network, _ = vq.read_tokenizer(target, SIDE)
    assert c.multipliers == (1, 2)
    kernel = state["quant_conv.weight"].numpy().transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(network["quant_conv"]["kernel"], kernel)


def test_a_pickle_that_runs_code_is_not_read(tmp_path):
    torch = pytest.importorskip("torch", reason="torch writes the pickle")
    source, target = tmp_path / "evil.ckpt", tmp_path / "evil.safetensors"
    torch.save({"state_dict": _Evil(str(tmp_path / "ran"))}, source)
    with pytest.raises(ValueError, match=r"weights_only=True\) refuses it"):
        torch_file.main(source, target)  # what the process of its own runs
    assert [path.name for path in tmp_path.iterdir()] == ["evil.ckpt"]


class _Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")
