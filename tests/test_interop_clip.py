"""A published CLIP in JAX: transformers' embeddings, its tokenizer's ids, and what is refused."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from clip_directory import VOCABULARY, write_clip
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cm3leon_jax import cli
from cm3leon_jax.interop.clip import fill_clip, read_clip, read_config
from cm3leon_jax.models.clip import DEVIATION, MEAN, text_batch

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


@st.composite
def shapes(draw):
    """As `clip_directory.B32`: towers that need not be alike."""
    few = st.integers(1, 3)
    patch, side, heads, text_heads = draw(st.sampled_from([2, 4])), *(draw(few) for _ in range(3))
    vision = patch * side, patch, 8 * heads, draw(st.integers(1, 2)), heads
    text = 8 * text_heads, draw(st.integers(1, 2)), text_heads
    return draw(st.sampled_from(["quick_gelu", "gelu"])), vision, text, draw(st.integers(4, 16))


@settings(max_examples=3, deadline=None, derandomize=True)
@given(shape=shapes())
def test_both_towers_give_the_embeddings_of_transformers_in_any_shape(shape):
    with tempfile.TemporaryDirectory() as folder:
        theirs, tokenizer = write_clip(Path(folder), shape)
        ours = read_clip(Path(folder))
    size = ours.network.config.size
    pixels = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), np.uint8)
    texts = ["a Red cat", "", "cat " * 90]  # upper case; empty; longer than 77

    batch = tokenizer(texts, padding="max_length", truncation=True, max_length=77)
    ids = np.array(batch["input_ids"])
    made = text_batch(
        [ours.text.encode(text) for text in texts], ours.network.config, len(VOCABULARY)
    )
    for row, wanted in zip(made, ids):
        count = int((row == len(VOCABULARY) + 1).argmax()) + 1
        assert row[:count].tolist() == wanted[:count].tolist()  # theirs pads with the end

    normal = (pixels / np.float32(255) - np.float32(MEAN)) / np.float32(DEVIATION)
    with torch.no_grad():
        out = theirs(
            torch.from_numpy(ids), torch.from_numpy(normal.transpose(0, 3, 1, 2).astype(np.float32))
        )
    for name, found, wanted in (
        ("pictures", ours.pictures(pixels), out.image_embeds),
        ("texts", ours.texts(texts), out.text_embeds),
    ):
        difference = np.abs(found - wanted.numpy()).max()
        print(f"{shape} {name}: maximum difference {difference:.2g}")
        assert difference < 5e-6
    assert float(ours.network.scale) == pytest.approx(theirs.logit_scale.exp().item())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("clip")
    write_clip(place)
    return place


def test_pictures_of_another_size_are_resized_as_pillow_does(folder):
    ours = read_clip(folder)
    picture = Image.linear_gradient("L").resize((21, 13)).convert("RGB")
    square = picture.crop((4, 0, 17, 13)).resize((8, 8), Image.Resampling.BICUBIC)
    found, wanted = (ours.pictures(np.asarray(p)[None])[0] for p in (picture, square))
    assert found @ wanted > 0.9999


def edit(source: Path, target: Path, file: str, change) -> Path:
    """A copy of the folder in which `change` has been at the content of one file."""
    from safetensors.numpy import load_file, save_file

    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    path = target / file
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
    else:
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)
    return target


PROJECTION = "visual_projection.weight"
BAD = {
    "missing": ("model.safetensors", lambda t: t.pop(PROJECTION), PROJECTION),
    "extra": ("model.safetensors", lambda t: t.update(more=np.zeros(2)), "'more': is no part"),
    "shape": (
        "model.safetensors",
        lambda t: t.update({PROJECTION: np.zeros((5, 16))}),
        r"visual_projection.weight shape=\(5, 16\): .*projection_dim asks for \(12, 16\)",
    ),
    "vocabulary": ("config.json", lambda c: c["text_config"].update(vocab_size=9), "vocab_size=9"),
    "mlp": ("config.json", lambda c: c["vision_config"].update(intermediate_size=80), "80"),
    "kind": ("config.json", lambda c: c.update(model_type="siglip"), "model_type='siglip'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_another_network_is_refused_by_name(folder, tmp_path, case):
    file, change, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        read_clip(edit(folder, tmp_path, file, change))


def test_what_does_not_convert_leaves_nothing(folder, tmp_path, capsys):
    (tmp_path / "theirs").mkdir()
    place = edit(folder, tmp_path / "theirs", *BAD["extra"][:2])
    assert cli.main(["convert", str(place), str(tmp_path / "run" / "retriever" / "network")]) == 2
    error = capsys.readouterr().err
    assert "tensor='more': is no part of a CLIP" in error
    assert error.count("\n") == 1
    assert not list((tmp_path / "run").rglob("network*"))


def test_other_pixels_and_pickles_are_refused(folder, tmp_path):
    place = edit(folder, tmp_path, "config.json", lambda c: None)
    (place / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5, 0.5, 0.5]}))
    with pytest.raises(ValueError, match="image_mean"):
        read_clip(place)
    (place / "preprocessor_config.json").unlink()
    (place / "model.safetensors").rename(place / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickle"):
        read_clip(place)


def test_the_position_ids_of_older_files_are_accepted_if_they_count(folder):
    from safetensors.numpy import load_file

    c, pieces = read_config(folder)
    tensors, name = load_file(folder / "model.safetensors"), "text_model.embeddings.position_ids"
    fill_clip(c, pieces, {**tensors, name: np.arange(77)[None]})
    with pytest.raises(ValueError, match=name):
        fill_clip(c, pieces, {**tensors, name: np.arange(77)[None] + 1})
