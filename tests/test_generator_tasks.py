"""Every task on an untrained model: streams as the templates say, results by the grammar."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import RETRIEVER, SMALL
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

import cm3leon_jax as cm3
from cm3leon_jax import config
from cm3leon_jax.decoding.batches import draw_in_batches
from cm3leon_jax.decoding.holes import fill_prompt, find_holes
from cm3leon_jax.evaluation.clip_score import bundle_encoders
from cm3leon_jax.interop.clip import ImportedClip
from cm3leon_jax.models.clip import CLIP, embed_pictures, embed_texts
from cm3leon_jax.models.transformer import Transformer
from cm3leon_jax.models.vqgan import VQGAN
from cm3leon_jax.tokens.document import MASK, Document, Image, Text
from cm3leon_jax.tokens.text import TextTokenizer
from cm3leon_jax.tokens.vocabulary import BREAK, EOS, PAD

TEXTS = [
    "a red ring, two blue ones.",
    "Edit first image following the instruction",
    "Make high quality image from canny edge features",
    "Generate high quality image of a with segmentations at location (0, 4) -> (8, 16)",
    "Question: what colour is it? Answer: Let's think step-by-step: So the answer is",
    "Describe the given picture in very detail.",
]
CHANGES = {
    "model.context": 160,
    "model.text_pieces": 140,
    "model.image_tokens": 16,
    "image_tokenizer.size": 16,
    "objective.max_spans": 3,
}


@pytest.fixture(scope="module")
def generator(tmp_path_factory) -> cm3.Generator:
    c = config.replace(config.Experiment(), SMALL | RETRIEVER | {"retrieval.most": 0} | CHANGES)
    path = tmp_path_factory.mktemp("text") / "text.model"
    text = TextTokenizer.train(TEXTS, path, pieces=c.model.text_pieces - 6)
    model = Transformer(c.model, rngs=nnx.Rngs(0))
    tokenizer = VQGAN(c.image_tokenizer, rngs=nnx.Rngs(1))
    clip = CLIP(c.retriever, c.model.text_pieces, rngs=nnx.Rngs(2))
    return cm3.Generator(c, text, model, tokenizer, clip=clip)


@pytest.fixture(scope="module")
def picture() -> Pillow.Image:
    rng = np.random.default_rng(0)
    return Pillow.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))


@pytest.fixture
def asked(generator, monkeypatch) -> list[list[str]]:
    """The streams of every draw, readable; what is drawn is always code 0 or the text ` red`."""
    seen: list[list[str]] = []
    v = generator.vocabulary

    def answer(model, streams, decode, n, seed, new_tokens, **prompts):
        seen.append(
            [v.describe(row, generator.text.decode) for stream in streams for row in stream]
        )
        drawn = np.zeros((len(streams[0]) * n, new_tokens), np.int32)
        if new_tokens == generator.experiment.decode.text_tokens:
            red = v.text_ids(generator.text.encode(" red"))
            drawn[:, : len(red)] = red
        return drawn

    monkeypatch.setattr("cm3leon_jax.decoding.drawing.draw_in_batches", answer)
    return seen


def shown(generator, picture) -> str:
    codes = generator.encode_images([picture])[0]
    return generator.vocabulary.describe(generator.vocabulary.image_ids(codes))


def pixels(images) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


def test_an_edit_has_three_streams(generator, picture, asked):
    assert generator.edit(picture, "a red ring").size == (16, 16)
    image, first = shown(generator, picture), "'Edit first image following the instruction'"
    assert asked == [
        [
            f"<eos> {first} <break> {image} <break> 'a red ring' <break>",
            f"<eos> {first} <break> {image} <break> <mask:0> <break>",
            f"<eos> {first} <break> <mask:0> <break> <mask:1> <break>",
        ]
    ]


def test_a_structure_stands_between_its_wording_and_the_prompt(generator, picture, asked):
    generator.from_structure(picture, "edges", "a red ring")
    image, first = shown(generator, picture), "'Make high quality image from canny edge features'"
    assert asked[0] == [
        f"<eos> {first} <break> {image} <break> 'a red ring' <break>",
        f"<eos> {first} <break> <mask:0> <break> <mask:1> <break>",
    ]
    generator.from_structure([picture] * 2, "scribble", ["one", "two"], guidance=1.0)
    assert len(asked[1]) == 2
    assert "'Make high quality image from children's scribbles'" in asked[1][1].replace('"', "'")


def test_boxes_are_written_as_pixel_corners(generator, asked):
    generator.from_boxes("a ring", [("red ring", (0, 4, 8, 16)), ("blue one", (8, 0, 16, 4))])
    assert asked == [
        [
            "<eos> 'Generate high quality image of a ring with segmentations red ring at location"
            " (0, 4) -> (8, 16), blue one at location (8, 0) -> (16, 4)' <break>",
            "<eos> <mask:0> <break>",
        ]
    ]


def test_questions_and_captions_are_holes_in_front_of_the_picture(generator, picture, asked):
    image = shown(generator, picture)
    assert generator.answer(picture, "what colour is it?") == "red"
    assert generator.caption(picture, style="long") == "red"
    assert asked == [
        [
            "<eos> 'Question: what colour is it? Answer:' <mask:0> '.' <break>"
            f" {image} <eos> <mask:0>"
        ],
        [
            "<eos> 'Describe the given picture in very detail.' <mask:0> <break>"
            f" {image} <eos> <mask:0>"
        ],
    ]


def test_an_explanation_stands_in_front_of_its_answer(generator, picture, asked):
    answer = generator.answer(picture, "what colour is it?", explain=True)
    assert answer == "red So the answer is red"
    template = (
        '<eos> "Question: what colour is it?\\nAnswer: Let\'s think step-by-step:" <mask:0>'
        " ' So the answer is' <mask:1> '.' <break>"
    )
    assert asked[0][0].startswith(template)
    assert asked[0][0].endswith("<eos> <mask:0>")
    assert asked[1][0].endswith("<eos> <mask:0> ' red' <eoss> <mask:1>")


def test_a_mask_typed_into_a_question_is_text(generator, picture, asked):
    generator.answer(picture, "<mask> ring?")
    assert "'Question: <mask> ring? Answer:'" in asked[0][0]


def test_edits_are_drawn_alike_alone_and_among_others(generator, picture):
    turned = picture.rotate(90)
    both = pixels(generator.edit([picture, turned], "a red ring", seed=1))
    assert both.shape == (2, 16, 16, 3)
    np.testing.assert_array_equal(both[1], generator.edit(turned, "a red ring", seed=1))


def test_a_box_of_pixels_becomes_holes_of_codes(generator, picture):
    codes = generator.encode_images([picture])[0].reshape(4, 4)
    cut = generator.mask_image(picture, (5, 4, 12, 9))  # touches columns 1, 2 of rows 1, 2
    expected = codes.copy()
    expected[1:3, 1:3] = MASK
    assert cut == Image(expected.reshape(-1))
    assert [(h.start, h.stop) for h in find_holes(Document([cut]))] == [(5, 7), (9, 11)]
    rows = generator.mask_image(picture, (0, 4, 16, 12))
    assert [(h.start, h.stop) for h in find_holes(Document([rows]))] == [(4, 12)]
    whole = generator.mask_image(cut, (0, 0, 16, 16))
    assert whole == Image([MASK] * 16)
    grey = np.all(np.asarray(generator.parts(Document([cut]))[0]) == 128, axis=-1)
    assert grey[4:12, 4:12].all()
    assert not grey[:4].all()


def test_a_hole_shifts_the_places_of_no_code(generator):
    v = generator.vocabulary
    image = Image([10, MASK, MASK, 13, MASK, 15])
    ids, places = fill_prompt(Document([Text([7, MASK]), image]), [(8,), (11, 12)], v)
    t, i = v.text_start, v.image_start
    m = [v.mask(k) for k in range(3)]
    source = [EOS, t + 7, m[0], BREAK, i + 10, m[1], i + 13, m[2], i + 15, EOS]
    assert ids.tolist() == [*source, m[0], t + 8, 4, m[1], i + 11, i + 12, 4, m[2]]
    assert places.tolist() == [-1, -1, -1, -1, 0, -1, 3, -1, 5, -1, -1, -1, -1, -1, 1, 2, -1, -1]


def test_filled_codes_know_their_places(generator, picture):
    c = config.replace(generator.experiment, {"model.code_positions": True})
    model = Transformer(c.model, rngs=nnx.Rngs(3))
    coded = replace(generator, experiment=c, transformer=model)
    document = Document([coded.mask_image(picture, (0, 4, 16, 12))])
    fill = coded.infill(document, temperature=0).segments[0].codes[4:12]
    ids, places = fill_prompt(document, [], coded.vocabulary)
    ids = np.concatenate([ids, coded.vocabulary.image_ids(fill)])[None].astype(np.int32)
    places = np.concatenate([places, np.arange(4, 12)])[None]
    hidden = model(ids, np.ones_like(ids), np.arange(ids.shape[1])[None], places)
    logits = np.asarray(hidden[0, -9:-1] @ model.head_table()[model.image_start :].T)
    chosen = np.take_along_axis(logits, np.array(fill)[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(chosen, logits.max(axis=1), atol=1e-4)


def test_holes_of_texts_and_images_are_filled_in_one_document(generator, picture, monkeypatch):
    firsts = []

    def watch(model, streams, *rest, **prompts):
        firsts.append((streams[0][0], prompts["multiple"]))
        return draw_in_batches(model, streams, *rest, **prompts)

    monkeypatch.setattr("cm3leon_jax.decoding.drawing.draw_in_batches", watch)
    cut = generator.mask_image(picture, (4, 4, 12, 12))
    document = generator.document("a <mask> ring", cut)
    filled = generator.infill(document, seed=2)
    text, image = filled.segments
    was, now = np.array(cut.codes), np.array(image.codes)
    np.testing.assert_array_equal(now[was != MASK], was[was != MASK])
    assert len(now) == 16
    assert MASK not in now
    assert MASK not in text.ids
    assert firsts[2][0].tolist()[-4:-2] == (now[5:7] + generator.vocabulary.image_start).tolist()
    assert len({multiple for _, multiple in firsts}) == 1
    assert len(firsts[2][0]) <= firsts[2][1]
    assert generator.infill(document, seed=2) == filled
    short = Document([document.segments[0], Image([*was[:4], MASK])])  # 12 codes in one hole
    assert len(generator.infill(short).segments[1].codes) == 16


def test_a_completed_document_is_a_document(generator):
    given = generator.document("a red ring")
    lengths = set()
    for seed in range(6):
        whole = generator.complete(given, max_segments=3, temperature=2.0, seed=seed)
        ids = whole.to_ids(generator.vocabulary, image_tokens=16)
        assert Document.from_ids(ids, generator.vocabulary, image_tokens=16) == whole
        assert whole.segments[0] == given.segments[0]
        lengths.add(len(whole.segments))
    assert lengths <= {2, 3, 4}
    assert len(lengths) > 1  # the model closes some of them
    assert generator.complete(given, max_segments=3, temperature=2.0, seed=5) == whole


def test_a_document_goes_on_as_the_model_says(generator, monkeypatch):
    v, script = generator.vocabulary, []
    words = v.text_ids(generator.text.encode(" red")).tolist()

    def draw(model, streams, decode, n, seed, new_tokens, **prompts):
        script.append(v.describe(streams[0][0], generator.text.decode).count("<break>"))
        limit = generator.experiment.decode.text_tokens
        if new_tokens == 0:
            return np.array([kinds.pop(0)])
        closed = [*words, *[EOS] * (len(script) > 4)]
        row = [3] * 16 if new_tokens == 16 else [*closed, *[PAD] * (limit - len(closed))]
        return np.array([row], np.int32)

    monkeypatch.setattr("cm3leon_jax.decoding.drawing.draw_in_batches", draw)
    kinds = [v.image_start + 3, BREAK, v.text_start + 1]
    whole = generator.complete(generator.document("a ring"))
    kind = [type(segment) for segment in whole.segments]
    assert kind == [Text, Image, Text]
    assert script == [1, 1, 1, 2, 2]
    monkeypatch.undo()


def test_the_context_ends_a_document(generator):
    long = Text(np.arange(140) % generator.text.pieces)
    whole = generator.complete(Document([long]), max_segments=9)
    assert 2 <= len(whole.segments) <= 4
    assert len(whole.to_ids(generator.vocabulary)) <= 160
    with pytest.raises(ValueError, match="document tokens=157: use a shorter one: 3 left"):
        generator.complete(Document([Text([1] * 155)]))


def test_the_best_candidates_by_clip_come_first(generator):
    texts = ["a red ring", "two blue ones."]
    drawn = pixels(generator.images(texts, n=4, seed=1)).reshape(2, 4, 16, 16, 3)
    by_text = embed_texts(generator.clip, [generator.text.encode(text) for text in texts])
    pairs = generator.images(texts, n=2, candidates=4, return_scores=True, seed=1)
    for row, (words, pool) in enumerate(zip(by_text, drawn)):
        scores = embed_pictures(generator.clip, pool) @ words
        best = np.argsort(-scores)[:2]
        images, marks = zip(*pairs[2 * row : 2 * row + 2])
        np.testing.assert_array_equal(pixels(images), pool[best])
        np.testing.assert_allclose(marks, scores[best], rtol=1e-5)
    one = generator.images(texts[1], candidates=4, seed=1)
    np.testing.assert_array_equal(pixels(one), pixels([pairs[2][0]]))
    ranked = generator.images(texts, n=4, return_scores=True, seed=1)
    assert [mark for _, mark in ranked[:2]] == [mark for _, mark in pairs[:2]]
    assert len(ranked) == 8
    encoders = bundle_encoders(generator)  # the evaluation scores as the ranking does
    scores = encoders.pictures(pixels([each for each, _ in ranked[:4]])) @ encoders.texts(texts)[0]
    np.testing.assert_allclose(scores, [mark for _, mark in ranked[:4]], rtol=1e-5)


def test_an_imported_clip_ranks_what_its_own_tokenizer_spells(generator):
    class Letters:
        def encode(self, text: str) -> list[int]:
            return [ord(letter) for letter in text.lower()]

    texts = ["A red ring", "two blue ones."]
    imported = ImportedClip(generator.clip, Letters())
    by_it = replace(generator, clip_text=imported.text)
    pairs = by_it.images(texts, n=4, return_scores=True, seed=1)
    images, marks = zip(*pairs)
    found = imported.pictures(pixels(images)).reshape(2, 4, -1)
    wanted = np.einsum("pme,pe->pm", found, imported.texts(texts))
    np.testing.assert_allclose(marks, wanted.ravel(), rtol=1e-5)
    own = embed_texts(generator.clip, [generator.text.encode(text) for text in texts])
    assert np.abs(own - imported.texts(texts)).max() > 0.01


def test_a_mixed_pool_is_half_guided_half_contrastive(generator):
    pool = generator.images("a red ring", n=4, candidates=4, mixed=True, contrastive=8)
    guided = generator.images("a red ring", n=2)
    contrastive = generator.images("a red ring", n=2, contrastive=8)
    found, expected = (
        {image.tobytes() for image in images} for images in (pool, [*guided, *contrastive])
    )
    assert found == expected
    assert len(found) == 4
    several = pixels(generator.images("a red ring", n=2, contrastive=8, seed=0))
    np.testing.assert_array_equal(several, pixels(contrastive))


WRONG = [
    (lambda g, p: g.images("a", candidates=1, n=2), "candidates=1: use at least n=2"),
    (lambda g, p: g.images("a", candidates=4, mixed=True), "contrastive=None: use k >= 1 with"),
    (lambda g, p: g.images("a", mixed=True, contrastive=2), "candidates=1: use 2 or more"),
    (lambda g, p: g.images("a", contrastive=0), "contrastive=0: use 1"),
    (lambda g, p: g.images("a", contrastive=2, guidance=3), "guidance=3: use it or contrastive"),
    (lambda g, p: g.images("a", seed=-1), "seed=-1: use a whole number"),
    (lambda g, p: g.images("a", seed=None), "seed=None: use a whole number"),
    (lambda g, p: replace(g, clip=None).images("a", candidates=2), "clip=None: use a bundle with"),
    (lambda g, p: g.caption(p, style="odd"), "style='odd': use one of 'short', 'long'"),
    (lambda g, p: g.answer(p, " "), "question=' ': use some text"),
    (lambda g, p: g.answer([p, p], ["a"]), "question=.'a'.: use one string, or one for each of"),
    (lambda g, p: g.answer([], "a"), r"image=\[\]: use at least one picture"),
    (lambda g, p: g.edit(p, ""), "instruction='': use some text"),
    (lambda g, p: g.edit(p, "a", guidance_text=-1), "guidance_text=-1: use 0 or more"),
    (lambda g, p: g.edit(p, "a", guidance_image=-1), "guidance_image=-1: use 0 or more"),
    (lambda g, p: g.from_structure(p, "maps", "a"), "kind='maps': use one of 'edges', 'seg"),
    (lambda g, p: g.from_structure(p, "depth", " "), "prompt=' ': use some text"),
    (lambda g, p: g.from_boxes("a", []), r"boxes=\[\]: use at least one \(name, box\)"),
    (lambda g, p: g.from_boxes("a", [("b", (0, 0, 17, 4))]), r"boxes\[0\]=\(0, 0, 17, 4\): use 4"),
    (lambda g, p: g.from_boxes("a", [(" ", (0, 0, 4, 4))]), r"boxes\[0\] name=' ': use some text"),
    (lambda g, p: g.from_boxes(" ", [("b", (0, 0, 4, 4))]), "caption=' ': use some text"),
    (lambda g, p: g.mask_image(p, (4, 0, 4, 8)), r"box=\(4, 0, 4, 8\): use 4 whole numbers"),
    (lambda g, p: g.mask_image(p, (-1, 0, 4, 8)), r"0 <= left < right <= 16"),
    (lambda g, p: g.mask_image(p, (0, 0, 4, 0.5)), "use 4 whole numbers"),
    (
        lambda g, p: g.mask_image(p, (0, 0, 4, 16)),
        r"holes=4: at most 3 = objective.max_spans fit; full rows, \(0, top, 16, bottom\), are one",
    ),
    (lambda g, p: g.infill(Document([Image([1, 2])])), "codes of an image=2: use 16"),
    (lambda g, p: g.infill(Document([Image([MASK, 2, MASK])])), "codes of an image=3: use 16"),
    (lambda g, p: g.complete(g.document("a <mask>")), "document holes=1: use one without"),
    (lambda g, p: g.complete(g.document("a"), 0), "max_segments=0: use at least 1"),
]


@pytest.mark.parametrize(("call", "message"), WRONG)
def test_wrong_arguments_are_named(generator, picture, call, message):
    with pytest.raises(ValueError, match=message):
        call(generator, picture)


@settings(max_examples=8, deadline=None)
@given(
    guided=st.sampled_from([{"guidance": 1.0}, {"guidance": 4.0}, {"contrastive": 3}]),
    temperature=st.floats(0, 5),
    top_p=st.floats(0.05, 0.99),
    top_k=st.integers(1, 99),
    box=st.sampled_from([(0, 4, 16, 8), (0, 0, 16, 16), (4, 4, 12, 12)]),
    seed=st.integers(0, 2**63 - 1),
)
def test_no_options_draw_what_is_illegal(
    generator, picture, guided, temperature, top_p, top_k, box, seed
):
    options = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": seed}
    images = generator.images("a red ring", n=2, **guided, **options)
    assert [image.size for image in images] == [(16, 16)] * 2
    document = generator.document("a <mask> ring", generator.mask_image(picture, box))
    filled = generator.infill(document, temperature=temperature, seed=seed)
    ids = filled.to_ids(generator.vocabulary, image_tokens=16)  # refuses codes out of range
    assert Document.from_ids(ids, generator.vocabulary, image_tokens=16) == filled
    assert max(filled.segments[0].ids) < generator.text.pieces
