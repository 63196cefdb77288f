import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import WORDS, make_documents, make_text
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow

from cm3leon_jax import config
from cm3leon_jax.data.loader import token_batches
from cm3leon_jax.evaluation import report
from cm3leon_jax.evaluation.documents import page
from cm3leon_jax.evaluation.rows import Origin, Watched, read_row
from cm3leon_jax.tokens.document import Document, Image, Text
from cm3leon_jax.tokens.objective import code_places, relocate, rng_for, rotate, token_weights
from cm3leon_jax.tokens.packing import Example, fill_row, stack
from cm3leon_jax.tokens.vocabulary import Vocabulary

NEIGHBOUR = np.dtype([("row", "<i8"), ("score", "<f2"), ("by", "u1")])
HOSTILE = "<script>alert('x')</script> & \"quotes\" é"


class Read(HTMLParser):
    """A page as a browser reads it: its words, its pictures, and the attributes of its tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words, self._open = "", []
        self.feed(text)
        assert self._open == [], "every tag is closed"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._open += [] if tag in ("meta", "img", "br") else [tag]

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open[-1:] != ["style"]:
            self.words += data

    def of(self, kind: str) -> list[dict[str, str]]:
        """The attributes of the tags that have this class."""
        return [a for _, a in self.tags if kind in a.get("class", "").split()]

    @property
    def pictures(self) -> list[np.ndarray]:
        data = [a["src"].partition("base64,")[2] for tag, a in self.tags if tag == "img"]
        return [np.array(Pillow.open(io.BytesIO(base64.b64decode(one)))) for one in data]

    def boxes(self, colour: str) -> list[tuple[float, ...]]:
        """(x, width, y, height) of the boxes of a colour, in all strips."""
        names = ("x", "width", "y", "height")
        boxes = [a for tag, a in self.tags if tag == "rect" and a["fill"] == colour]
        return [tuple(float(box[name]) for name in names) for box in boxes]


def decode(codes: np.ndarray) -> np.ndarray:
    """Pictures [B 8 8 3] of codes [B 4], a colour for each code."""
    assert len(np.unique(codes, axis=0)) == len(codes), "each picture is decoded once"
    colours = np.stack([codes * 3, 200 - codes, codes % 7 * 30], -1).astype(np.uint8)
    return colours.reshape(-1, 2, 2, 3).repeat(4, 1).repeat(4, 2)


@pytest.fixture
def wide(small) -> config.Experiment:
    """Rows that hold long texts."""
    return config.replace(small, {"model.context": 256, "data.row_length": 256})


def pair(caption: str, first: int = 0) -> tuple[Text, Image]:
    return Text(make_text().encode(caption)), Image(range(first, first + 4))


def alone(ids: np.ndarray) -> Example:
    """Ids of weight 1; a page does not show places."""
    return Example(ids, np.ones(len(ids)), np.full(len(ids), -1))


def show(c: config.Experiment, *given: tuple[Origin, list[tuple[int, int]]]) -> Read:
    """The page of one row: documents, each with the spans that are masked in it."""
    vocabulary, examples = Vocabulary.of(c.model), []
    for origin, chosen in given:
        ids = relocate(origin.document.to_ids(vocabulary), chosen, vocabulary)
        weights = token_weights(ids, vocabulary, c.objective, origin.document.main_start)
        examples.append(Example(ids, weights, code_places(ids, vocabulary)))
    batch = stack([fill_row(examples, c.data.row_length)])
    text = page(batch, [origin for origin, _ in given], make_text(), decode, c)
    return Read(text)


def test_a_page_holds_every_word_and_every_picture_of_what_is_not_masked(wide):
    captions = ["a bad cab", "dad", "the facade of a decade"]
    origins = [Origin(Document(pair(text, 4 * i))) for i, text in enumerate(captions)]
    read = show(wide, *((origin, []) for origin in origins))
    for text in captions:
        assert text in read.words
    truths = decode(np.arange(12).reshape(3, 4))
    for picture, truth in zip(read.pictures, truths, strict=True):
        np.testing.assert_array_equal(picture, truth)
    assert read.words.count("nothing masked") == 4  # of the examples and in the table
    assert len(read.of("fill")) == 0


def test_a_masked_text_stands_behind_its_document_and_whole_in_a_title(wide):
    document = Document(pair("a facade of a decade"))
    start = 1 + len(make_text().encode("a facade"))
    stop = len(document.segments[0].ids)
    read = show(wide, (Origin(document), [(start, stop)]))
    assert "a facade<mask:0>" in read.words
    last = make_text().decode([document.segments[0].ids[-1]])
    assert "<eos><mask:0> of a decade"[: -len(last)] + "<eoss>" in read.words
    assert [a["title"] for a in read.of("text") if "title" in a] == ["a facade of a decade"]
    assert len(read.pictures) == 1


def test_a_masked_image_is_shown_once_and_at_its_fill(wide):
    document = Document(pair("a cab"))
    end = len(document.to_ids(Vocabulary.of(wide.model))) - 1
    read = show(wide, (Origin(document), [(end - 4, end)]))
    assert len(read.of("empty")) == len(read.of("fill")) == len(read.pictures) == 1
    np.testing.assert_array_equal(read.pictures[0], decode(np.arange(4)[None])[0])


def test_the_parts_of_a_masked_image_make_the_whole_one(wide):
    document = Document(pair("a cab"))
    end = len(document.to_ids(Vocabulary.of(wide.model))) - 1
    read = show(wide, (Origin(document), [(end - 4, end - 3), (end - 2, end)]))
    truth = decode(np.arange(4)[None])[0]
    hatched = report.cover(truth, np.zeros(4, bool))
    shown = [(picture != hatched).any(-1) for picture in read.pictures]
    assert [mask.sum() for mask in shown] == [16, 16, 32]  # what is left, then both fills
    assert (np.sum(shown, 0) == 1).all()
    for picture, mask in zip(read.pictures, shown):
        np.testing.assert_array_equal(picture[mask], truth[mask])
    assert shown[1][:4, :4].all()
    assert shown[2][4:].all()


def test_nothing_that_a_record_says_becomes_html(wide):
    neighbour = Document(pair(HOSTILE, 4))
    origin = Origin(Document(pair(HOSTILE), [neighbour]), f"{HOSTILE} id", (f"{HOSTILE} found",))
    read = show(wide, (origin, [(3, 9)]))
    assert "script" not in {tag for tag, _ in read.tags}
    assert read.words.count(HOSTILE) == 3  # the name, what was found, the text that is not masked
    assert f"{HOSTILE} id" in read.words
    assert [a["title"] for a in read.of("text") if "title" in a] == [HOSTILE]


def test_a_page_asks_nothing_of_the_network(wide):
    read = show(wide, (Origin(Document(pair("a cab"))), []))
    links = [a.get("src", a.get("href", "")) for _, a in read.tags if {"src", "href"} & set(a)]
    assert all(link.startswith(("data:", "#")) for link in links)
    targets = {a["id"] for _, a in read.tags if "id" in a}
    assert {link[1:] for link in links if link[0] == "#"} == targets == {"e1.1"}


def test_retrieved_documents_stand_apart_with_their_notes_and_their_weight(wide):
    c = config.replace(wide, {"objective.retrieved_weight": 2.0, "objective.sentinel_weight": 0.5})
    retrieved = [Document(pair("a bad ace", 4)), Document([Image(range(8, 12))])]
    origin = Origin(Document(pair("a cab"), retrieved), "x", ("0.81 by text · y", "z"))
    spans = [(1, 1 + len(make_text().encode("a bad ace")))]
    read = show(c, (origin, spans))
    assert len(read.of("retrieved")) == 2
    assert len(read.of("document")) == 3
    order = ("retrieved · weight 2 · 0.81 by text · y", "retrieved · weight 2 · z",
             "main document", "<eos><mask:0>a bad ace")  # fmt: skip
    places = [read.words.index(part) for part in order]
    assert places == sorted(places)
    assert "2 retrieved documents" in read.words
    vocabulary = Vocabulary.of(c.model)
    ids = relocate(origin.document.to_ids(vocabulary), spans, vocabulary)
    weights = token_weights(ids, vocabulary, c.objective, origin.document.main_start)
    assert set(weights) == {2, 0.5, 1}
    heights = np.zeros(c.data.row_length)
    for x, width, y, height in read.boxes("#9aa1ab"):
        assert y + height == 64
        heights[int(x) : int(x + width)] = height
    np.testing.assert_allclose(heights[: len(ids) - 1], 20 * weights[1:] / 2)
    assert not heights[len(ids) - 1 :].any()


def test_usual_weights_are_not_named(wide):
    document = Document(pair("a cab"), [Document(pair("dad", 4))])
    read = show(wide, (Origin(document), []))
    assert "weight 1" not in read.words


def test_the_strip_has_a_colour_for_each_example_and_a_lighter_one_for_what_was_retrieved(wide):
    alone, joined = Document(pair("dad")), Document(pair("a cab"), [Document(pair("ace", 4))])
    read = show(wide, (Origin(joined), []), (Origin(alone), []))
    ids = joined.to_ids(Vocabulary.of(wide.model))
    start = joined.main_start
    # The opening <eos> belongs to the main document, the last id of an example is only told.
    assert read.boxes("#2563eb73") == [(1, start - 1, 0, 24)]
    assert read.boxes("#2563eb") == [(0, 1, 0, 24), (start, len(ids) - 1 - start, 0, 24)]
    size = len(alone.to_ids(Vocabulary.of(wide.model))) - 1
    assert read.boxes("#ea8a0b") == [(len(ids) - 1, size, 0, 24)]


def test_the_strip_marks_fills_and_gives_signs_the_colour_of_what_they_stand_for(wide):
    document = Document(pair("a cab"), [Document([Image(range(4, 8))])])
    vocabulary = Vocabulary.of(wide.model)
    size = len(document.to_ids(vocabulary))
    read = show(wide, (Origin(document), [(2, 4), (size - 3, size - 1)]))
    # Two ids of each image are behind the document, a sentinel stands for them; the last <eoss> is
    # only told. The retrieved document takes <break> along.
    document_end = size - 2
    first, second = (document_end, 4), (document_end + 4, 3)
    assert [box[:2] for box in read.boxes("#2563eb73")] == [(1, 4), first]
    assert [box[:2] for box in read.boxes("#2563eb")] == [(0, 1), (5, document_end - 5), second]
    red = read.boxes("#e11d48")
    assert [box[:2] for box in red if box[3] == 4] == [(document_end, 7)]
    signs = [(2, 1), (document_end - 2, 1), (document_end, 1), (document_end + 3, 2)]
    assert [box[:2] for box in red if box[3] == 12] == signs


def test_figures_count_what_is_in_the_batch(small):
    c = config.replace(small, {"objective.rate": 0.0})
    documents = [Document(pair("a cab"), [Document(pair("ace", 4))]), Document(pair("dad"))]
    vocabulary = Vocabulary.of(c.model)
    every = [document.to_ids(vocabulary) for document in documents]
    rows = [fill_row([alone(ids)], c.data.row_length) for ids in every]
    text = page(stack(rows), [Origin(d) for d in documents], make_text(), decode, c)
    words = re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", text))
    places = [len(ids) - 1 for ids in every]
    for row, used in enumerate(places, start=1):
        assert f"Row {row} 1 document, {used} of 48 places filled: {used / 48:.0%}" in words
    assert f"{sum(places) / 96:.0%} of all places filled 2 rows of 48" in words
    assert "1.0 documents per row 2 in all" in words
    assert "0.5 retrieved per document 1 with 0, 1 with 1" in words
    assert f"{12 / sum(places):.0%} of the loss on images" in words
    assert "nothing masked 2 100% 100%" in words
    assert "a whole image masked 0 0% 0%" in words


def test_figures_tell_whole_from_partial_masks_and_weigh_the_loss(wide):
    c = config.replace(wide, {"objective.retrieved_weight": 0.0, "objective.sentinel_weight": 0.0})
    document = Document(pair("a cab"), [Document(pair("ace", 4))])
    end = len(document.to_ids(Vocabulary.of(c.model))) - 1
    told = len(make_text().encode("a cab")), 4, 3  # texts, images; <break>, <eos> and one <eoss>
    shares = f"{told[1] / sum(told):.0%}of the loss on images{told[0] / sum(told):.0%} on texts"
    whole = show(c, (Origin(document), [(end - 4, end)]))
    assert shares in whole.words
    assert re.search(r"a whole image masked1100%\d+%some of an image masked1100%", whole.words)
    part = show(c, (Origin(document), [(end - 4, end - 1)]))
    assert re.search(r"nothing masked00%\d+%a whole text masked00%", part.words)
    assert re.search(r"a whole image masked00%\d+%some of an image masked1100%", part.words)


def test_rows_without_examples_are_shown_empty(small):
    document = Document(pair("a cab"))
    ids = document.to_ids(Vocabulary.of(small.model))
    rows = [fill_row([alone(ids)], 48), fill_row([], 48)]
    read = Read(page(stack(rows), [Origin(document)], make_text(), decode, small))
    assert "0 documents, 0 of 48 places filled: 0%" in read.words


@given(st.integers(0, 10_000))
def test_a_row_is_read_back_as_it_was_packed(seed):
    vocabulary = Vocabulary(specials=32, sentinels=20, text=30, images=10)
    rng = np.random.default_rng(seed)
    objective = config.Objective(rate=3.0, whole_segment=0.3, retrieved_weight=0.5)
    examples, origins = [], {}
    for index in range(3):
        document = Document([Text(rng.integers(0, 30, 5)), Image(rng.integers(0, 10, 9))])
        ids = document.to_ids(vocabulary)
        rotated = rotate(ids, vocabulary, rng_for(seed, 0, index), objective)
        weights = np.append(0, rng.random(len(rotated) - 1))
        examples.append(Example(rotated, weights, code_places(rotated, vocabulary)))
        origins[ids.tobytes()] = Origin(document, str(index))
    found = read_row(fill_row(examples, 200), vocabulary, origins)
    for index, (seen, example) in enumerate(zip(found, examples, strict=True)):
        np.testing.assert_array_equal(seen.ids, example.ids)
        np.testing.assert_allclose(seen.weights, example.weights, rtol=1e-6)
        assert seen.origin.name == str(index)
        # The spans that were found rotate the document in the same way.
        again = relocate(seen.document, seen.holes, vocabulary)
        np.testing.assert_array_equal(again, example.ids)


def test_an_example_from_nowhere_is_refused(small):
    ids = Document(pair("a cab")).to_ids(Vocabulary.of(small.model))
    batch = stack([fill_row([alone(ids)], 48)])
    with pytest.raises(ValueError, match=r"example 1 of a row has no origin: .* Watched examples"):
        page(batch, [Origin(Document(pair("dad")))], make_text(), decode, small)


def test_what_the_loader_gives_is_shown_with_its_neighbours(wide):
    c = config.replace(wide, {"train.batch": 3, "retrieval.least": 1, "retrieval.most": 3})
    records = make_documents(c)
    neighbours = np.zeros((len(records), 4), NEIGHBOUR)
    neighbours["row"] = (np.arange(len(records))[:, None] + [1, 2, 3, 4]) % len(records)
    neighbours["row"][:, 3] = -1
    neighbours["score"], neighbours["by"] = 0.5, [0, 0, 1, 1]
    watched = Watched(records, make_text(), c, records, neighbours)
    batch = next(iter(token_batches([(watched, 1.0)], make_text(), c)))
    read = Read(page(batch, watched.origins, make_text(), decode, c))
    count = int(batch["segments"].max(axis=1).sum())
    assert len(read.of("example")) == count
    names = {origin.name: origin for origin in watched.origins}
    assert len(names) >= count
    for name, found in re.findall(r"(document-\d+) · \d+ tokens · (\d) retrieved", read.words):
        assert len(names[name].document.retrieved) == int(found)
        for retrieved, note in zip(names[name].document.retrieved, names[name].found):
            score, neighbour = note.split(" · ")
            row = int(neighbour.removeprefix("document-"))
            place = (row - int(name.removeprefix("document-"))) % len(records)
            assert score == f"0.50 by {'text' if place < 3 else 'image'}"
            assert tuple(records[row].images[0]) == retrieved.segments[1].codes
            assert f"retrieved · {note}" in read.words
    assert set(read.words.split()) & set(WORDS)
