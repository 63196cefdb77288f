"""The page of `cm3leon demo`: what each tab does, what it refuses, and a visit by Chromium."""

import base64
import io
import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import RETRIEVER, SMALL
from flax import nnx
from PIL import Image as Pillow

import cm3leon_jax as cm3
from benchmarks._visit import CHROMIUM, DRIVER, browsing, drag, find, serving, wait
from cm3leon_jax import config
from cm3leon_jax.cli import main
from cm3leon_jax.data.pictures import to_png
from cm3leon_jax.data.shards import CodedRecord
from cm3leon_jax.data.structures import MAPS
from cm3leon_jax.demo import answers
from cm3leon_jax.demo.canvas import MAX_BYTES, open_upload, read_canvas, to_url
from cm3leon_jax.demo.figures import Part, show
from cm3leon_jax.demo.server import make_server
from cm3leon_jax.models.transformer import Transformer
from cm3leon_jax.models.vqgan import VQGAN
from cm3leon_jax.tokens.document import Document, Image, Text
from cm3leon_jax.tokens.text import TextTokenizer

TEXTS = [
    "a red ring, two blue ones.",
    "Edit first image following the instruction",
    "Make high quality image from canny edge features",
    "Generate high quality image of a with segmentations at location (0, 4) -> (8, 16)",
]
CHANGES = {
    "model.context": 192,
    "model.text_pieces": 140,
    "model.image_tokens": 16,
    "image_tokenizer.size": 16,
    "decode.documents": 1,
    "retrieval.most": 2,
}
SIZE = 16


@pytest.fixture(scope="module")
def generator(tmp_path_factory) -> cm3.Generator:
    c = config.replace(config.Experiment(), SMALL | RETRIEVER | CHANGES)
    path = tmp_path_factory.mktemp("text") / "text.model"
    text = TextTokenizer.train(TEXTS, path, pieces=c.model.text_pieces - 6)
    model = Transformer(c.model, rngs=nnx.Rngs(0))
    tokenizer = VQGAN(c.image_tokenizer, rngs=nnx.Rngs(1))
    rng = np.random.default_rng(0)
    records = [CodedRecord(f"r{i}", (t, codes(rng))) for i, t in enumerate(TEXTS[0].split(", "))]

    def find(prompts, count):
        segments = [[Text(text.encode(r.texts[0])), Image(r.images[0])] for r in records]
        return [tuple(map(Document, segments[:count])) for _ in prompts]

    memory = SimpleNamespace(records=records, find_by_texts=find, find_by_pictures=find)
    return cm3.Generator(c, text, model, tokenizer, memory=memory)


def codes(rng) -> np.ndarray:
    return rng.integers(0, 64, SIZE, np.int32)


@pytest.fixture
def quick(monkeypatch) -> None:
    """All that is drawn is code or piece 0, at once."""

    def answer(model, streams, decode, n, seed, new_tokens, **prompts):
        return np.zeros((len(streams[0]) * n, new_tokens), np.int32)

    monkeypatch.setattr("cm3leon_jax.decoding.drawing.draw_in_batches", answer)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 3), np.uint8)


def canvas(picture=None, *boxes) -> dict:
    """What the component sends."""
    return {"picture": None if picture is None else to_url(picture), "boxes": list(boxes)}


def ignore(*heard) -> None:
    """A stream that lets the Generator draw row by row, without compiling the other way as well."""


def same(part: Part, picture) -> bool:
    return np.array_equal(np.asarray(part.content), np.asarray(picture))


def test_generate_shows_rows_then_pictures_and_the_documents_beside(generator):
    asked = {"n": 2, "candidates": 1, "guidance": 2.0, "documents": 2, "seed": 3}
    shown = list(answers.generate(generator, "a red ring", **asked, is_watched=True))
    del asked["candidates"]
    wanted = generator.images("a red ring", **asked, stream=ignore)
    for parts in shown:
        assert [part.caption for part in parts if part.is_beside] == [
            "a red ring",
            "two blue ones.",
        ]
    *rows, last = shown
    assert len(rows) > 1
    assert not any(part.is_drawn for parts in rows for part in parts)
    drawn = [part for part in last if part.is_drawn]
    assert all(map(same, drawn, wanted))
    assert len(drawn) == 2


def test_of_candidates_the_best_are_shown_with_their_scores(generator, monkeypatch, quick):
    scored = SimpleNamespace(images=lambda prompt, n, **asked: [(asked["candidates"], 0.5)] * n)
    scored.text, scored.find = generator.text, lambda *_: [()]
    (parts,) = answers.generate(scored, "a ring", 2, 8, 1.0, 0, 0, True)
    assert [(part.content, part.caption) for part in parts] == [(8, "score 0.500")] * 2


def test_edit_fills_a_rectangle_and_follows_an_instruction_without_one(generator, picture, quick):
    box = (0, 4, 16, 8)
    given = canvas(picture, ["", [*box]])
    ((before, after),) = answers.edit(generator, given, "a ring", 1.5, 2.0, 0)
    assert same(before, picture)
    assert [corners for _, corners in before.boxes] == [box]
    whole = generator.document("a ring", generator.mask_image(picture, box))
    assert same(after, generator.parts(generator.infill(whole))[1])
    ((before, after),) = answers.edit(generator, canvas(picture), "a ring", 1.5, 2.0, 0)
    assert same(after, generator.edit(picture, "a ring", guidance_image=1.5, guidance_text=2.0))
    with pytest.raises(ValueError, match="picture: choose one first"):
        list(answers.edit(generator, canvas(), "a ring", 1.5, 2.0, 0))


def test_boxes_are_drawn_and_shown_over_the_picture(generator, quick):
    boxes = [("a ring", (0, 4, 8, 16))]
    given = canvas(None, ["a ring", [0, 4, 8, 16]])
    ((plain, over),) = answers.boxes(generator, given, "a ring", 1.0, 0)
    assert same(plain, generator.from_boxes("a ring", boxes, guidance=1.0))
    assert over.boxes == boxes
    with pytest.raises(ValueError, match=r"boxes\[0\] name=' ': use some text"):
        list(answers.boxes(generator, canvas(None, [" ", [0, 4, 8, 16]]), "a", 1.0, 0))


@pytest.mark.parametrize("source", [answers.MADE, answers.BY_MODEL, answers.GIVEN])
def test_a_map_is_computed_or_drawn_or_given(generator, picture, quick, source):
    given = canvas(picture), source, "edges", "a ring", 1.0, 0
    (first,), (shown, drawn) = answers.structure(generator, *given)
    wanted = {
        answers.MADE: lambda: MAPS["edges"](picture),
        answers.BY_MODEL: lambda: generator.to_structure(picture, "edges"),
        answers.GIVEN: lambda: picture,
    }[source]()
    assert same(first, wanted)
    assert same(shown, wanted)
    assert same(drawn, generator.from_structure(wanted, "edges", "a ring", guidance=1.0))


def test_answers_are_written_piece_by_piece(generator, picture):
    shown = list(answers.ask(generator, canvas(picture), "Caption", "", 1))
    texts = [part.content for (part,) in shown]
    assert texts[-1] == generator.caption(picture, seed=1, stream=ignore)
    assert len(texts) > 1


def test_a_document_grows_by_what_a_person_and_the_model_add(generator, picture):
    with pytest.raises(ValueError, match="document: begin it with a text or a picture"):
        list(answers.interleave(generator, None, " ", canvas(), 2, 0))
    *_, (parts, document) = answers.interleave(generator, None, "a ring", canvas(picture), 1, 0)
    assert parts[0].content == "a ring"
    assert len(parts) == len(document.segments) == 3
    *_, (parts, longer) = answers.interleave(generator, document, "red", canvas(), 1, 0)
    assert longer.segments[:3] == document.segments
    assert parts[3].content == "red"
    assert len(longer.segments) == 5
    refused = answers.interleave(generator, longer, "a <mask>", canvas(), 1, 0)
    assert next(refused)[1] is longer  # what is refused is not kept
    with pytest.raises(ValueError, match="document holes=1: use one without"):
        next(refused)


def test_what_fails_while_one_watches_is_raised():
    def fail(stream):
        stream(1, "b")
        stream(0, "a")
        raise ValueError("n=0: use at least 1")

    seen = []
    with pytest.raises(ValueError, match="n=0"):
        seen.extend(answers.watch(fail))


def test_a_model_is_offered_for_what_it_was_trained_for():
    few = answers.Skills(config.Data(tasks=("edit", "edges", "segmentation_of", "question")))
    assert few.has("edit")
    assert not few.has("boxes")
    assert few.kinds == ["edges"]
    assert few.ways == ["Caption", "Answer"]
    assert few.sources("edges") == [answers.MADE, answers.GIVEN]
    every = answers.Skills(config.Data())
    assert every.has("boxes")
    assert len(every.kinds) == 8
    assert every.ways == list(answers.WAYS)


def test_uploads_are_read_safely(picture):
    assert np.array_equal(open_upload(to_url(picture), SIZE), picture)
    many = io.BytesIO()
    Pillow.new("1", (9000, 9000)).save(many, "PNG")

    def message(data: bytes) -> str:
        with pytest.raises(ValueError, match="picture") as error:
            open_upload(f"data:image/png;base64,{base64.b64encode(data).decode()}", SIZE)
        return str(error.value)

    assert message(bytes(MAX_BYTES + 2**20)) == "picture of 17.0 MB: the limit is 16 MB"
    assert message(many.getvalue()) == "picture: 9000 x 9000 pixels: the limit is 64,000,000"
    assert message(to_png(picture)[:-30]).startswith("picture: ")
    assert message(b"<svg></svg>").startswith("picture: not a picture in a known format")
    for wrong in ("/etc/hostname", None, "data:image/png;base64,?"):
        with pytest.raises(ValueError, match="picture"):
            open_upload(wrong, SIZE)
    for value in (None, {}, {"picture": None, "boxes": [["a", [0, 0, 1]]]}):
        with pytest.raises(ValueError, match="canvas: use"):
            read_canvas(value, SIZE)


def test_texts_are_shown_as_they_are_and_never_as_html():
    page = show(
        [Part("<b>bold</b>"), Part(Pillow.new("RGB", (8, 8)), "<i>", [("<u>", (0, 0, 4, 8))])]
    )
    assert "&lt;b&gt;bold" in page
    assert not re.search("<[biu]>bold|<i>|<u>", page)
    assert "left:0.0%;top:0.0%;width:50.0%;height:100.0%" in page


def test_bad_input_is_one_line(tmp_path, capsys, monkeypatch):
    def refused(*more: str) -> str:
        assert main(["demo", str(tmp_path), "--port", "0", *more]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "has no config.json; give the folder of a run or of a bundle" in refused()
    assert "port=99999: " in refused("--port", "99999")
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert refused() == "cm3leon: demo needs Gradio: pip install 'cm3leon_jax[demo]'"


def test_pages_of_other_sites_are_answered_nothing(generator, tmp_path, monkeypatch):
    from starlette.testclient import TestClient

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    client = TestClient(make_server(generator).config.app, base_url="http://127.0.0.1:7860")
    files = {"files": ("a.txt", b"a")}
    for origin, code in (("http://elsewhere", 403), ("null", 403), ("http://127.0.0.1:7860", 200)):
        sent = client.post("/gradio_api/upload", files=files, headers={"origin": origin})
        assert sent.status_code == code
    assert client.get("/").status_code == 200
    assert client.get("/", headers={"host": "elsewhere"}).status_code == 400


@pytest.mark.skipif(None in (CHROMIUM, DRIVER), reason="no chromium with its chromedriver")
def test_a_visit_draws_edits_and_asks_no_other_server(generator, tmp_path, monkeypatch, quick):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    with serving(generator) as address, browsing() as browser:
        browser.get(address)
        (prompt,) = wait(browser, "label textarea")
        tabs = [tab.text for tab in find(browser, "button[role=tab]")]
        assert tabs == ["Generate", "Edit", "Boxes", "Structure", "Ask", "Interleave"]
        prompt.clear()
        prompt.send_keys(" ")  # clearing alone is no input
        find(browser, "button", "Draw")[0].click()
        wait(browser, ".toast-body", "prompt=' ': use some text")
        prompt.send_keys("a red ring")
        find(browser, "button", "Draw")[0].click()
        wait(browser, "img.drawn", count=4)
        (beside,) = find(browser, "aside")
        assert beside.text.split("\n") == ["Retrieved documents", "a red ring"]

        find(browser, "button[role=tab]", "Edit")[0].click()
        (field,) = wait(browser, ".canvas")[0].find_elements("css selector", "input[type=file]")
        large, wrong = tmp_path / "large.png", tmp_path / "wrong.png"
        large.write_bytes(bytes(MAX_BYTES + 2**20))
        wrong.write_bytes(b"no picture")
        field.send_keys(str(large))
        wait(browser, ".note", "large.png has 17.0 MB: the limit is 16.0 MB")
        field.send_keys(str(wrong))
        wait(browser, ".note", "picture: not a picture in a known format")
        assert find(browser, ".stage img") == []
        find(browser, ".pick")[0].click()  # one that was drawn
        wait(browser, ".stage img")

        find(browser, "button[role=tab]", "Boxes")[0].click()
        wait(browser, ".stage")
        drag(browser, 0.1, 0.2, 0.6, 0.9)
        wait(browser, ".names input")[0].send_keys("a ring")
        find(browser, "label textarea")[0].send_keys("a ring")
        find(browser, "button", "Draw")[0].click()
        wait(browser, "figure", count=2)
        assert find(browser, "figure .rect b")[0].text == "a ring"

        logs = [json.loads(entry["message"]) for entry in browser.get_log("performance")]
        told = browser.get_log("browser")
    sent = [log["message"] for log in logs if log["message"]["method"].endswith("BeSent")]
    urls = [message["params"]["request"]["url"] for message in sent]
    assert f"{address}/" in urls
    assert [url for url in urls if not url.startswith((address, "data:", "blob:"))] == []
    assert [entry for entry in told if "Content Security Policy" in entry["message"]] == []
