"""The public object on an untrained bundle: legal, repeatable, exact about what stays."""

import numpy as np
import pytest
from flax import nnx
from PIL import Image as Pillow

import cm3leon_jax as cm3
from cm3leon_jax import bundle, checkpoint, config
from cm3leon_jax.data.shards import write_shards
from cm3leon_jax.decoding.engine import pad_prompts
from cm3leon_jax.models import image_codes
from cm3leon_jax.models.transformer import Transformer
from cm3leon_jax.models.vqgan import VQGAN
from cm3leon_jax.tokens.document import MASK
from cm3leon_jax.tokens.text import TextTokenizer

TEXTS = ["a red ring", "a blue ring", "two green rings", "no ring at all"]


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> cm3.Generator:
    from conftest import SMALL

    c = config.replace(config.Experiment(), SMALL | {"decode.top_p": 0.95})
    workdir = tmp_path_factory.mktemp("run")
    TextTokenizer.train(TEXTS, workdir / "text.model", pieces=c.model.text_pieces - 6)
    tokenizer = VQGAN(c.image_tokenizer, rngs=nnx.Rngs(1))
    checkpoint.save_network(workdir / "image_tokenizer" / "network", tokenizer)
    write_shards([], workdir / "documents", "train")
    (workdir / "documents" / "skipped.txt").write_text("")
    checkpoint.write_json(workdir / "documents" / "licenses.json", {"CC0-1.0": 3, "": 1})
    bundle.write_bundle(c, workdir, Transformer(c.model, rngs=nnx.Rngs(0)))
    moved = tmp_path_factory.mktemp("elsewhere") / "bundle"  # a bundle holds no absolute paths
    (workdir / "bundle").rename(moved)
    return cm3.load(moved)


@pytest.fixture
def picture() -> Pillow.Image:
    rng = np.random.default_rng(0)
    return Pillow.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))


def pixels(images) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


def test_only_pieces_that_the_tokenizer_has_are_drawn(generator, picture):
    assert generator.text.pieces < generator.experiment.model.text_pieces
    for seed in range(20):
        generator.caption(picture, temperature=5.0, seed=seed)  # decode raises on unknown pieces


def test_images_repeat_by_seed_and_differ_by_number(generator):
    first = pixels(generator.images("a red ring", n=4, seed=3))
    assert first.shape == (4, 8, 8, 3)
    np.testing.assert_array_equal(first, pixels(generator.images("a red ring", n=4, seed=3)))
    assert np.any(first != pixels(generator.images("a red ring", n=4, seed=4)))
    assert len(np.unique(first.reshape(4, -1), axis=0)) > 1


def test_every_bit_of_a_seed_counts_and_more_columns_than_there_are_keep_all(generator):
    low, high = (pixels(generator.images("bad cab", n=4, seed=seed)) for seed in (5, 2**32 + 5))
    assert np.any(low != high)
    many = pixels(generator.images("bad cab", n=4, seed=5, top_k=2**40))
    np.testing.assert_array_equal(many, low)


def test_guidance_1_needs_no_second_stream(generator, monkeypatch):
    streams = []

    def count(given, *rest):
        streams.append(len(given))
        return pad_prompts(given, *rest)

    monkeypatch.setattr("cm3leon_jax.decoding.batches.pad_prompts", count)
    plain = generator.images("a red ring", guidance=1.0)
    guided = generator.images("a red ring", guidance=6.0)
    assert streams == [1, 2]
    assert np.any(pixels(plain) != pixels(guided))


def test_captions_are_text_for_one_picture_and_for_many(generator, picture):
    caption = generator.caption(picture)
    assert isinstance(caption, str)
    assert caption
    assert generator.caption([picture, picture]) == [caption, caption]


def test_infill_changes_the_holes_only(generator, picture):
    document = generator.document("a <mask> ring and a <mask> ring", picture)
    filled = generator.infill(document)
    text, image = filled.segments
    assert MASK not in text.ids
    assert image == document.segments[1]
    first, *rest = split_at_holes(document.segments[0].ids)
    assert text.ids[: len(first)] == first
    assert text.ids[len(text.ids) - len(rest[-1]) :] == rest[-1]
    assert any(text.ids[i : i + len(rest[0])] == rest[0] for i in range(len(text.ids)))
    parts = generator.parts(filled)
    assert parts[0].startswith("a")
    assert parts[0].endswith(" ring")
    assert parts[1].size == (8, 8)
    assert generator.infill(document) == filled


def split_at_holes(ids: tuple[int, ...]) -> list[tuple[int, ...]]:
    parts: list[list[int]] = [[]]
    for i in ids:
        parts.append([]) if i == MASK else parts[-1].append(i)
    return [tuple(part) for part in parts]


def test_more_holes_than_training_had_are_refused(generator):
    document = generator.document("a <mask> b <mask> c <mask> d <mask> e <mask> f")
    with pytest.raises(ValueError, match="holes=5: use at most 4, as in training"):
        generator.infill(document)


def test_a_document_is_shown_as_it_was_given(generator):
    assert generator.parts(generator.document("a red ring")) == ["a red ring"]
    shown = generator.parts(generator.document("a <mask> ring, é and <pad>"))
    assert shown == ["a<mask> ring, é and <pad>"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": " "}, "prompt=' '"),
        ({"prompt": []}, r"prompt=\[\]"),
        ({"n": 0}, "n=0: use at least 1"),
        ({"guidance": -1.0}, "guidance=-1.0"),
        ({"temperature": -0.1}, "temperature=-0.1"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_k": -1}, "top_k=-1"),
        (
            {"prompt": "ring " * 60},
            r"a prompt of \d+ tokens and 4 new ones exceed model.context=64; shorten",
        ),
    ],
)
def test_wrong_arguments_are_named(generator, arguments, message):
    with pytest.raises(ValueError, match=message):
        generator.images(**{"prompt": "a ring"} | arguments)


def test_a_document_without_a_hole_cannot_be_filled(generator, picture):
    with pytest.raises(ValueError, match="document holes=0: use a document with a hole"):
        generator.infill(generator.document("a red ring", picture))


def test_a_folder_that_is_no_bundle_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"has no config\.json"):
        cm3.load(tmp_path)


@pytest.mark.optimized
def test_a_sample_is_the_same_alone_and_among_others(generator):
    many = pixels(generator.images(["a red ring", "a blue ring"], n=3, seed=1))
    np.testing.assert_array_equal(many[3:4], pixels(generator.images("a blue ring", n=1, seed=1)))
    np.testing.assert_array_equal(many[:2], pixels(generator.images("a red ring", n=2, seed=1)))


@pytest.mark.optimized
def test_more_rows_than_one_batch_change_nothing(generator, monkeypatch):
    whole = pixels(generator.images("a red ring", n=5))
    monkeypatch.setattr("cm3leon_jax.decoding.batches.ROWS", 2)
    np.testing.assert_array_equal(whole, pixels(generator.images("a red ring", n=5)))


def test_few_pictures_are_coded_at_once_where_they_are_large(generator, monkeypatch):
    tokenizer, seen, real = generator.image_tokenizer, [], image_codes._decode
    codes = np.random.default_rng(0).integers(0, 64, (5, 4))
    together = image_codes.decode_codes(tokenizer, codes).astype(int)
    monkeypatch.setattr(image_codes, "PIXELS", 2 * 8 * 8)
    monkeypatch.setattr(image_codes, "_decode", lambda t, c: seen.append(len(c)) or real(t, c))
    np.testing.assert_allclose(image_codes.decode_codes(tokenizer, codes), together, atol=1)
    assert seen == [2, 2, 2]
