"""A CLIP of others in a run and in a bundle: it finds documents and ranks, by its own tokenizer."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from clip_directory import write_clip
from conftest import RETRIEVER, SMALL
from flax import nnx
from PIL import Image

import cm3leon_jax as cm3
from cm3leon_jax import bundle, checkpoint, cli, config, picture_stages, stages
from cm3leon_jax.data import sources
from cm3leon_jax.data.prepare import merge, prepare_part
from cm3leon_jax.data.shards import Shards
from cm3leon_jax.interop.clip import ImportedClip, read_clip
from cm3leon_jax.mapped import Mapped
from cm3leon_jax.models.transformer import Transformer
from cm3leon_jax.models.vqgan import VQGAN
from cm3leon_jax.tokens.text import TextTokenizer

pytest.importorskip("torch")
pytest.importorskip("transformers")

TEXTS = ("red cat", "a red cat", "cat 1", "a0b", "dog", "red", "the 9th cat", "a green dog")


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    write_clip(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder


@pytest.fixture(scope="module")
def imported(clip_folder) -> ImportedClip:
    return read_clip(clip_folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory, clip_folder) -> Path:
    """A run whose retriever is not that of its config: converted, then prepare and retrieve."""
    home = tmp_path_factory.mktemp("home")
    pictures, run = home / "pictures", home / "run"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for i, text in enumerate(TEXTS):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(pictures / f"{i}.png")
        (pictures / f"{i}.txt").write_text(text)
    same = {"retrieval.max_score": 1.0, "retrieval.max_similarity": 1.0, "model.context": 96}
    same |= {"data.source": str(pictures), "data.held_out": 0.2, "retrieval.query_dropout": 0.0}
    c = config.replace(config.Experiment(), SMALL | RETRIEVER | same)
    checkpoint.write_experiment(run, c)
    TextTokenizer.train(TEXTS, run / "text.model", pieces=c.model.text_pieces)
    tokenizer = VQGAN(c.image_tokenizer, rngs=nnx.Rngs(1))
    checkpoint.save_network(run / "image_tokenizer" / "network", tokenizer)
    assert cli.main(["convert", str(clip_folder), str(run / "retriever" / "network")]) == 0
    picture_stages.train_retriever(
        c, None, run
    )  # one is there: nothing is read, nothing is trained
    parts = sources.plan(c.data, c.image_tokenizer.size)
    prepare_part(c, run, len(parts), *parts)  # `prepare` without a Beam pipeline
    merge(c, run, len(parts))
    stages.retrieve(c, run)
    bundle.write_bundle(c, run, Transformer(c.model, rngs=nnx.Rngs(0)))
    return run


def test_documents_have_the_vectors_of_the_imported_clip(run, imported):
    records, vectors = (
        Shards(run / "documents", "train"),
        Mapped(run / "documents", "train.vectors"),
    )
    assert vectors.shape[1:] == (3, 12)  # its size: that of the config is 16
    found = vectors[:].astype(np.float32)
    wanted = imported.texts([record.texts[0] for record in records])
    np.testing.assert_allclose(found[:, 1], wanted, atol=1e-3)
    pixels = [np.asarray(Image.open(_picture(run, record))) for record in records]
    np.testing.assert_allclose(found[:, 2], imported.pictures(np.stack(pixels)), atol=1e-3)
    assert json.loads((run / "neighbours" / "train.json").read_text())


def _picture(run: Path, record) -> Path:
    return run.parent / "pictures" / f"{TEXTS.index(record.texts[0])}.png"


def test_its_bundle_finds_documents_and_ranks_candidates_by_it(run, imported, tmp_path):
    g = cm3.load(shutil.copytree(run / "bundle", tmp_path / "bundle"))
    prompt = "The CAT"  # its own tokenizer reads capitals, which text.model spells
    vectors = Mapped(run / "documents", "train.vectors")[:][:, 0].astype(np.float32)
    best = int((vectors @ imported.texts([prompt])[0]).argmax())
    ((found,),) = g.memory.find_by_texts([prompt], 1)
    record = Shards(run / "documents", "train")[best]
    assert g.text.decode(found.segments[0].ids) == record.texts[0]
    pairs = g.images(prompt, n=2, candidates=4, return_scores=True, documents=1)
    images, scores = zip(*pairs)
    wanted = imported.pictures(np.stack([*map(np.asarray, images)])) @ imported.texts([prompt])[0]
    np.testing.assert_allclose(scores, wanted, rtol=1e-4)
    assert "mit" in (tmp_path / "bundle" / "clip" / "card.md").read_text()


def test_a_bundle_that_had_none_ranks_by_a_clip_that_is_converted_into_it(
    run, clip_folder, imported, tmp_path, capsys
):
    plain = shutil.copytree(run / "bundle", tmp_path / "bundle")
    for name in ("clip", "memory"):
        shutil.rmtree(plain / name)
    with pytest.raises(ValueError, match="clip=None: use a bundle with clip/"):
        cm3.load(plain).images("cat", candidates=2)
    source = shutil.copytree(clip_folder, tmp_path / "clip")
    (source / "README.md").write_text("---\nlicense: other\n---\n")
    assert cli.main(["convert", str(source), str(plain / "clip")]) == 0
    g = cm3.load(plain)
    assert "licence 'other': research only" in capsys.readouterr().err
    ((image, score),) = g.images("cat", candidates=4, return_scores=True, n=1)
    found = imported.pictures(np.asarray(image)[None])[0] @ imported.texts(["cat"])[0]
    assert score == pytest.approx(found, rel=1e-4)
