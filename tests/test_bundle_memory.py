"""A bundle with a memory: what stands in front of a prompt, and whose memory it may be."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import RETRIEVER, SMALL
from flax import nnx
from PIL import Image as Pillow

import cm3leon_jax as cm3
from cm3leon_jax import bundle, checkpoint, config
from cm3leon_jax.data.shards import CodedRecord, write_shards
from cm3leon_jax.decoding.batches import draw_in_batches
from cm3leon_jax.mapped import finish_mapped, write_mapped_part
from cm3leon_jax.models.clip import CLIP, document_vectors, embed_pictures, embed_texts
from cm3leon_jax.models.image_codes import encode_pictures
from cm3leon_jax.models.transformer import Transformer
from cm3leon_jax.models.vqgan import VQGAN
from cm3leon_jax.tokens.document import Document, Image, Text
from cm3leon_jax.tokens.text import TextTokenizer
from cm3leon_jax.tokens.vocabulary import BREAK

TEXTS = ["a red ring", "a blue ring", "two rings", "no ring at all", "a dot", "red dots"]
CHANGES = {"retrieval.max_score": 1.0, "retrieval.max_similarity": 1.0, "model.context": 128}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    c = config.replace(config.Experiment(), SMALL | RETRIEVER | CHANGES)
    workdir = tmp_path_factory.mktemp("run")
    text = TextTokenizer.train(TEXTS, workdir / "text.model", pieces=c.model.text_pieces - 6)
    tokenizer = VQGAN(c.image_tokenizer, rngs=nnx.Rngs(1))
    checkpoint.save_network(workdir / "image_tokenizer" / "network", tokenizer)
    clip = CLIP(c.retriever, c.model.text_pieces, rngs=nnx.Rngs(2))
    checkpoint.save_network(workdir / "retriever" / "network", clip)
    pixels = np.random.default_rng(0).integers(0, 256, (len(TEXTS), 8, 8, 3), np.uint8)
    np.save(workdir / "pixels.npy", pixels)
    codes = encode_pictures(tokenizer, pixels)
    made_by = {
        "image_tokenizer": checkpoint.fingerprint(tokenizer),
        "retriever": checkpoint.fingerprint(clip),
    }
    records = [
        CodedRecord(f"r{i}", (name, codes[i]), license="CC0-1.0") for i, name in enumerate(TEXTS)
    ]
    folder = workdir / "documents"
    write_shards(records, folder, "train", made_by)
    by_text = embed_texts(clip, [text.encode(name) for name in TEXTS])
    by_image = embed_pictures(clip, pixels)
    both = document_vectors(by_text[:, None], by_image[:, None])
    vectors = np.stack([both, by_text, by_image], axis=1).astype(np.float16)
    write_mapped_part(folder, "train.vectors", 0, 1, vectors)
    finish_mapped(folder, "train.vectors", 1, made_by)
    (folder / "skipped.txt").write_text("")
    (workdir / "notice.txt").write_text("the image tokenizer: research only\n")  # converted
    checkpoint.write_json(folder / "licenses.json", {"CC0-1.0": len(TEXTS)})
    bundle.write_bundle(c, workdir, Transformer(c.model, rngs=nnx.Rngs(0)))
    return workdir


@pytest.fixture(scope="module")
def moved(workdir, tmp_path_factory) -> Path:
    moved = tmp_path_factory.mktemp("elsewhere") / "bundle"
    (workdir / "bundle").rename(moved)
    (workdir / "documents" / "train.index.json").unlink()  # a bundle needs nothing of its run
    return moved


@pytest.fixture(scope="module")
def generator(moved) -> cm3.Generator:
    return cm3.load(moved)


def pixels(images) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


def test_the_nearest_documents_by_text_come_first(generator, workdir):
    memory = generator.memory
    pieces = [generator.text.encode("a red ring")]
    scores = embed_texts(memory.retriever, pieces)[0] @ memory.memory.vectors[:][:, 0].T
    best = np.argsort(-scores)[:2]
    (found,) = memory.find_by_texts(["a red ring"], 2)
    wanted = [TEXTS[i] for i in best]
    assert [generator.text.decode(d.segments[0].ids) for d in found] == wanted
    codes = encode_pictures(generator.image_tokenizer, np.load(workdir / "pixels.npy"))
    assert [d.segments[1].codes for d in found] == [tuple(codes[i].tolist()) for i in best]


def test_prompts_stand_behind_their_documents_in_both_streams(generator, monkeypatch):
    seen = []

    def watch(model, streams, *rest, **named):
        seen.append(streams)
        return draw_in_batches(model, streams, *rest, **named)

    monkeypatch.setattr("cm3leon_jax.decoding.drawing.draw_in_batches", watch)
    generator.images("a blue ring", n=2, guidance=2.0, documents=1)
    (found,) = generator.memory.find_by_texts(["a blue ring"], 1)
    v = generator.vocabulary
    text = Text(generator.text.encode("a blue ring"))
    # A placeholder image, so that to_ids writes the <break> behind the prompt's text.
    ids = Document([text, Image([0])], found).to_ids(v)[:-2]
    conditional, unconditional = seen[0]
    assert len(conditional) == len(unconditional) == 1
    np.testing.assert_array_equal(conditional[0], ids)
    begin = len(ids) - len(text.ids) - 1
    np.testing.assert_array_equal(unconditional[0], [*ids[:begin], v.mask(0), 3])


def test_the_clip_of_a_bundle_ranks_its_candidates(generator):
    assert generator.clip is generator.memory.retriever
    scores = [s for _, s in generator.images("a red ring", n=4, return_scores=True)]
    assert scores == sorted(scores, reverse=True)


def test_documents_change_the_picture_and_repeat(generator):
    none, one = (generator.images("a red ring", documents=n, n=4) for n in (0, 1))
    again = generator.images("a red ring", documents=1, n=4)
    assert np.any(pixels(none) != pixels(one))
    np.testing.assert_array_equal(pixels(one), pixels(again))
    np.testing.assert_array_equal(pixels(none), pixels(generator.images("a red ring", n=4)))


def test_captions_are_found_behind_documents_of_the_picture(generator, workdir):
    picture = Pillow.fromarray(np.load(workdir / "pixels.npy")[3])
    assert isinstance(generator.caption(picture, documents=2), str)
    (found,) = generator.memory.find_by_pictures(np.asarray(picture)[None], 2)
    scores = embed_pictures(generator.memory.retriever, np.asarray(picture)[None])[0]
    best = int(np.argmax(scores @ generator.memory.memory.vectors[:][:, 0].T))
    assert generator.text.decode(found[0].segments[0].ids) == TEXTS[best]


def test_documents_stand_in_front_of_every_task(generator, workdir, monkeypatch):
    v, seen = generator.vocabulary, []

    def watch(model, streams, decode, n, seed, new, **named):
        seen[:] = [row for stream in streams for row in stream]
        return np.zeros((len(streams[0]) * n, new), np.int32)

    monkeypatch.setattr("cm3leon_jax.decoding.drawing.draw_in_batches", watch)
    shown = [Pillow.fromarray(p) for p in np.load(workdir / "pixels.npy")[[1, 4]]]
    by_picture = generator.memory.find_by_pictures(np.stack([*map(np.asarray, shown)]), 1)
    by_text = generator.memory.find_by_texts(["a dot", "two rings"], 1)
    for call, rows, documents in (
        (lambda n: generator.answer(shown, "a?", documents=n), 1, by_picture),
        (lambda n: generator.caption(shown, documents=n), 1, by_picture),
        (lambda n: generator.edit(shown, "a dot", documents=n), 3, by_picture),
        (lambda n: generator.from_structure(shown, "edges", ["a dot", "two rings"], documents=n), 2,
         by_text),
        (lambda n: generator.from_boxes("a dot", [("dot", (0, 0, 4, 4))], documents=n), 2,
         by_text[:1]),
    ):  # fmt: skip
        call(0)
        without = list(seen)
        call(1)
        assert len(seen) == rows * len(documents)
        fronts = [Document(d.segments).to_ids(v)[:-1] for (d,) in documents]
        for row, bare, front in zip(seen, without, fronts * rows):
            # Sentinels are numbered within the document, so what follows is as without.
            np.testing.assert_array_equal(row, [*front, BREAK, *bare[1:]])


def test_documents_that_do_not_fit_the_context_are_left_out(generator, workdir):
    def short(context: int) -> cm3.Generator:
        changes = {"model.context": context, "data.row_length": context}
        c = config.replace(generator.experiment, changes)
        model = Transformer(c.model, rngs=nnx.Rngs(0))
        return replace(generator, experiment=c, transformer=model)

    picture = Pillow.fromarray(np.load(workdir / "pixels.npy")[3])
    images = lambda g, n: pixels(g.images("a red ring", documents=n))  # noqa: E731
    captions = lambda g, n: g.caption(picture, documents=n)  # noqa: E731
    pieces = len(generator.text.encode("a red ring"))
    limit = generator.experiment.decode.text_tokens
    for draw, alone in ((images, 1 + pieces + 1 + 4), (captions, 9 + limit)):
        g = short(alone + 6)  # the shortest document is <break>, a piece, <break>, 4 codes
        np.testing.assert_array_equal(draw(g, 2), draw(g, 0))
        assert np.any(draw(generator, 2) != draw(generator, 0))


def test_a_bundle_is_known_by_its_networks_on_every_machine(generator, moved, monkeypatch):
    monkeypatch.setattr("cm3leon_jax.models.transformer.APART", 0)
    apart = cm3.load(moved)
    assert not apart.transformer.is_stacked
    assert len(apart.identity) == 16
    assert apart.identity == generator.identity != cm3.load(moved, int8=True).identity


def test_the_memory_of_a_remote_bundle_is_left_out(moved, capsys, monkeypatch):
    for name in ("local", "read_experiment"):  # as if a bucket were mounted
        real = getattr(checkpoint, name)
        monkeypatch.setattr(
            f"cm3leon_jax.decoding.generator.{name}", lambda _, real=real: real(moved)
        )
    assert cm3.load("gs://bucket/bundle").memory is None
    said = capsys.readouterr().err
    assert "memory/ is not opened, copy the bundle" in said
    assert "the image tokenizer: research only" in said


def test_more_documents_than_training_had_are_refused(generator):
    with pytest.raises(ValueError, match="documents=3: use 0 to 2, as in training"):
        generator.images("a red ring", documents=3)
    alone = replace(generator, memory=None)
    with pytest.raises(ValueError, match="documents=1: use 0: there is no memory"):
        alone.images("a red ring", documents=1)
    with pytest.raises(ValueError, match="documents=-1: use 0 to 2, as in training"):
        generator.edit(Pillow.new("RGB", (8, 8)), "a dot", documents=-1)


def test_a_memory_of_other_networks_is_refused_with_both_fingerprints(generator, tmp_path):
    folder = Path(generator.memory.records.parts[0]).parents[1]
    c = generator.experiment
    other = CLIP(c.retriever, c.model.text_pieces, rngs=nnx.Rngs(3))
    mine = checkpoint.fingerprint(generator.memory.retriever)
    checkpoint.save_network(folder / "clip", other)
    theirs = checkpoint.fingerprint(other)
    both = f"made with the retriever {mine}, the bundle has {theirs}"
    with pytest.raises(ValueError, match=both):
        cm3.load(folder)
    checkpoint.save_network(folder / "clip", generator.memory.retriever)
    tokenizer = VQGAN(c.image_tokenizer, rngs=nnx.Rngs(7))
    checkpoint.save_network(folder / "image_tokenizer", tokenizer)
    with pytest.raises(ValueError, match="made with the image_tokenizer"):
        cm3.load(folder)


def test_the_memory_keeps_licences(generator):
    assert {record.license for record in generator.memory.records} == {"CC0-1.0"}


def test_the_notice_of_a_converted_upscaler_goes_with_it(tmp_path):
    source, target = tmp_path / "upscaler", tmp_path / "bundle"
    (source / "network").mkdir(parents=True)
    target.mkdir()
    (source / "config.json").write_text("{}")
    (source / "notice.txt").write_text("research only")
    bundle.add_upscaler(tmp_path, target)
    assert (target / "upscaler" / "notice.txt").read_text() == "research only"
