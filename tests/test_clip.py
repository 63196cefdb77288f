"""The retriever's network: OpenAI's CLIP to the letter, and what reaches its vectors."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from cm3leon_jax.config import Retriever
from cm3leon_jax.models.clip import (
    CLIP,
    DEVIATION,
    MEAN,
    document_vectors,
    draw_kept,
    embed_pictures,
    embed_texts,
    patches,
    text_batch,
)

PIECES = 60
SMALL = Retriever(
    size=16,
    patch=4,
    width=32,
    layers=3,
    heads=4,
    text_width=24,
    text_layers=2,
    text_heads=3,
    text_tokens=9,
    embedding=16,
    dtype="float32",
)
TEXTS = [[5, 3, 59], [7], [], [0, 0, 1, 2, 3, 4, 5]]


@pytest.fixture(scope="module")
def clip() -> CLIP:
    """Random weights everywhere: biases and norms too, which start as zeros and ones."""
    model = CLIP(SMALL, PIECES, rngs=nnx.Rngs(0))
    leaves, form = jax.tree.flatten(model)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return form.unflatten(
        [x + 0.1 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys)]
    )


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)


def original(clip: CLIP):
    """The same network as transformers' CLIPModel, with our weights copied into it."""
    torch = pytest.importorskip("torch", reason="torch runs the original")
    library = pytest.importorskip("transformers", reason="transformers has the original")
    c = clip.config
    common = {"hidden_act": "quick_gelu", "projection_dim": c.embedding}
    form = library.CLIPConfig(
        projection_dim=c.embedding,
        vision_config=common
        | {
            "image_size": c.size,
            "patch_size": c.patch,
            "hidden_size": c.width,
            "intermediate_size": 4 * c.width,
            "num_hidden_layers": c.layers,
            "num_attention_heads": c.heads,
        },
        text_config=common
        | {
            "vocab_size": clip.pieces + 2,
            "max_position_embeddings": c.text_tokens,
            "hidden_size": c.text_width,
            "intermediate_size": 4 * c.text_width,
            "num_hidden_layers": c.text_layers,
            "num_attention_heads": c.text_heads,
            "bos_token_id": clip.pieces,
            "eos_token_id": clip.pieces + 1,
        },
    )
    kernel = clip.image.patch_embedding[...].reshape(c.patch, c.patch, 3, c.width)
    weights = {
        "logit_scale": clip.log_scale[...],
        "visual_projection.weight": clip.image.projection[...].T,
        "text_projection.weight": clip.text.projection[...].T,
        "vision_model.embeddings.class_embedding": clip.image.class_token[...],
        "vision_model.embeddings.patch_embedding.weight": kernel.transpose(3, 2, 0, 1),
        "vision_model.embeddings.position_embedding.weight": clip.image.positions[...],
        "vision_model.pre_layrnorm.weight": clip.image.first_norm.scale[...],
        "vision_model.pre_layrnorm.bias": clip.image.first_norm.bias[...],
        "vision_model.post_layernorm.weight": clip.image.final_norm.scale[...],
        "vision_model.post_layernorm.bias": clip.image.final_norm.bias[...],
        "text_model.embeddings.token_embedding.weight": clip.text.embedding[...],
        "text_model.embeddings.position_embedding.weight": clip.text.positions[...],
        "text_model.final_layer_norm.weight": clip.text.final_norm.scale[...],
        "text_model.final_layer_norm.bias": clip.text.final_norm.bias[...],
    }
    for tower, blocks in (("vision_model", clip.image.layers), ("text_model", clip.text.layers)):
        for i in range(len(blocks.out[...])):
            layer = jax.tree.map(lambda x, i=i: x[i], blocks)
            wide = layer.out_bias[...].shape[0]
            thirds = [
                jnp.split(x[...], 3, axis=-1)
                for x in (layer.query_key_value, layer.query_key_value_bias)
            ]
            names = {
                f"self_attn.{name}_proj": (weight.reshape(wide, wide), bias)
                for name, weight, bias in zip("qkv", *thirds)
            } | {
                "self_attn.out_proj": (layer.out[...].reshape(wide, wide), layer.out_bias),
                "mlp.fc1": (layer.up[...], layer.up_bias),
                "mlp.fc2": (layer.down[...], layer.down_bias),
                "layer_norm1": (layer.attention_norm.scale[...], layer.attention_norm.bias),
                "layer_norm2": (layer.mlp_norm.scale[...], layer.mlp_norm.bias),
            }
            for name, (weight, bias) in names.items():
                place = f"{tower}.encoder.layers.{i}.{name}"
                weights[f"{place}.weight"] = weight.T
                weights[f"{place}.bias"] = bias[...].reshape(-1)
    model = library.CLIPModel(form).eval()
    tensors = {name: torch.tensor(np.asarray(value)) for name, value in weights.items()}
    model.load_state_dict(tensors, strict=True)
    return model


def test_vectors_and_scores_are_those_of_transformers(clip, pictures):
    torch = pytest.importorskip("torch", reason="torch runs the original")
    model = original(clip)
    pixels = (pictures / 255 - np.array(MEAN)) / np.array(DEVIATION)
    ids = text_batch(TEXTS, SMALL, PIECES)
    with torch.no_grad():
        theirs = model(
            input_ids=torch.tensor(ids.astype(np.int64)),
            pixel_values=torch.tensor(pixels.astype(np.float32)).permute(0, 3, 1, 2),
        )
    images, texts = embed_pictures(clip, pictures), embed_texts(clip, TEXTS)
    np.testing.assert_allclose(images, theirs.image_embeds, atol=1e-5)
    np.testing.assert_allclose(texts, theirs.text_embeds, atol=1e-5)
    scores = float(clip.scale) * images @ texts.T
    np.testing.assert_allclose(scores, theirs.logits_per_image, atol=1e-4)


def test_the_defaults_are_vit_b_32():
    build = lambda: CLIP(Retriever(), 49_406, rngs=nnx.Rngs(0))  # noqa: E731
    model = jax.eval_shape(build)
    counted = sum(x.size for x in jax.tree.leaves(model))
    assert counted == 151_277_313  # as the public checkpoint
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.uint8)
    vectors = jax.eval_shape(CLIP.encode_images, model, images)
    assert (vectors.shape, vectors.dtype) == ((2, 512), jnp.float32)


def test_vectors_have_length_one_whatever_the_precision(clip, pictures):
    halves = CLIP(replace(SMALL, dtype="bfloat16"), PIECES, rngs=nnx.Rngs(0))
    for model in (clip, halves):
        for vectors in (embed_pictures(model, pictures), embed_texts(model, TEXTS)):
            assert vectors.dtype == np.float32
            np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, rtol=1e-5)


def test_nothing_of_a_dropped_patch_reaches_the_vector(clip, pictures):
    keep = np.ones((4, 16), bool)
    keep[:, [1, 6]] = False
    changed = pictures.copy()
    changed[:, :4, 4:8] = 0  # patch 1
    changed[:, 4:8, 8:12] = 255  # patch 6
    before = embed_pictures(clip, pictures, keep)
    np.testing.assert_array_equal(before, embed_pictures(clip, changed, keep))
    assert np.abs(embed_pictures(clip, pictures) - embed_pictures(clip, changed)).max() > 1e-3
    whole = embed_pictures(clip, pictures)
    assert np.abs(before - whole).max() > 1e-3
    np.testing.assert_allclose(jax.jit(CLIP.encode_images)(clip, pictures), whole, atol=1e-6)


def test_nothing_behind_the_end_of_a_text_reaches_the_vector(clip):
    ids = text_batch(TEXTS, SMALL, PIECES)
    behind = np.arange(9) > ids.argmax(axis=1)[:, None]
    changed = np.where(behind, 17, ids)
    encode = jax.jit(CLIP.encode_texts)
    np.testing.assert_allclose(encode(clip, ids), encode(clip, changed), atol=1e-6)


def test_pictures_of_another_size_are_resized_as_pillow_does():
    rng = np.random.default_rng(0)
    smooth = np.kron(rng.integers(64, 192, (2, 8, 8, 3)), np.ones((1, 5, 5, 1))).astype(np.uint8)
    shrunk = np.stack(
        [np.array(Image.fromarray(p).resize((16, 16), Image.Resampling.BICUBIC)) for p in smooth]
    )
    clip = CLIP(SMALL, PIECES, rngs=nnx.Rngs(0))
    ours, pillows = embed_pictures(clip, smooth), embed_pictures(clip, shrunk)
    np.testing.assert_allclose(ours, pillows, atol=0.01)  # Pillow rounds to whole numbers
    nearest = smooth[:, 1::5, 1::5].repeat(2, axis=1).repeat(2, axis=2)
    assert np.abs(ours - embed_pictures(clip, nearest)).max() > 0.02


def test_a_text_is_start_pieces_end_and_zeros():
    rows = text_batch([[5, 3], [], range(20)], SMALL, PIECES)
    assert rows.dtype == np.int32
    np.testing.assert_array_equal(
        rows,
        [
            [60, 5, 3, 61, 0, 0, 0, 0, 0],
            [60, 61, 0, 0, 0, 0, 0, 0, 0],
            [60, 0, 1, 2, 3, 4, 5, 6, 61],
        ],
    )


@pytest.mark.parametrize("text", [[3, 60], [-1]])
def test_a_piece_of_another_tokenizer_is_refused(text):
    with pytest.raises(ValueError, match=r"text pieces .* the retriever knows 0 to 59"):
        text_batch([[1], text], SMALL, PIECES)


@pytest.mark.parametrize("count", [0, 1, 70])
def test_any_number_of_rows_gives_as_many_vectors(clip, count):
    pictures = np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    vectors = embed_pictures(clip, pictures)
    assert vectors.shape == (count, 16)
    np.testing.assert_array_equal(vectors[-3:], embed_pictures(clip, pictures[-3:]))
    assert embed_texts(clip, [[i % 60] for i in range(count)]).shape == (count, 16)


def test_a_document_is_the_mean_of_its_kinds():
    north, east, west = np.float32([0, 1]), np.float32([1, 0]), np.float32([-1, 0])
    none = np.zeros((0, 2), np.float32)
    texts = [north[None], np.stack([north, north, east]), none, north[None], none]
    images = [east[None], east[None], west[None], none, none]
    half = np.float32(0.5**0.5)
    of_three = np.float32([1, 2]) / 5**0.5 + east
    np.testing.assert_allclose(
        document_vectors(texts, images),
        [[half, half], of_three / np.linalg.norm(of_three), west, north, [0, 0]],
        rtol=1e-6,
    )


def test_the_same_document_always_loses_the_same_tokens():
    kept = draw_kept(64, 0.2, 0, "emoji-1f600")
    np.testing.assert_array_equal(kept, draw_kept(64, 0.2, 0, "emoji-1f600"))
    assert (kept != draw_kept(64, 0.2, 0, "emoji-1f601")).any()
    assert (kept != draw_kept(64, 0.2, 1, "emoji-1f600")).any()
    # Pinned: every worker, machine and later version must draw this.
    assert np.flatnonzero(~draw_kept(16, 0.5, 0, "a")).tolist() == [0, 1, 5, 9, 12, 15]


def test_the_share_is_kept_to_and_one_token_always_stays():
    draws = [draw_kept(patches(SMALL), 0.2, 0, f"document-{i}") for i in range(500)]
    assert np.mean(draws) == pytest.approx(0.8, abs=0.02)
    alone = [draw_kept(1, 0.9, 0, f"document-{i}") for i in range(20)]
    assert all(kept.all() for kept in alone)
    assert draw_kept(5, 0.0, 0, "a").all()
    assert draw_kept(0, 0.2, 0, "a").shape == (0,)
