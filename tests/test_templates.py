"""Templates tell a record's own parts, in the wordings of the paper's table 5."""

from dataclasses import replace

import numpy as np
import pytest

from cm3leon_jax.data.shards import CodedRecord
from cm3leon_jax.data.templates import TEMPLATES, Cut
from cm3leon_jax.tokens.wording import CAPTIONS, Filled

FIRST, SECOND = np.arange(4, dtype=np.int32), np.arange(4, 8, dtype=np.int32)
RECORD = CodedRecord(
    "two",
    ("a red cat", FIRST, "and its hat", SECOND),
    boxes=(("cat", (1.2, 2.0, 5.6, 7.0)), ("hat", (0, 0, 3, 2))),
    question="what is red?",
    answer="the cat",
    instruction="make it blue",
)


def test_the_orders_of_the_templates():
    assert TEMPLATES["plain"](RECORD) == [("a red cat", FIRST, "and its hat", SECOND)]
    assert TEMPLATES["image_first"](RECORD) == [(FIRST, SECOND, "a red cat", "and its hat")]


@pytest.mark.parametrize(
    ("name", "texts", "images"),
    [
        ("edit", ["Edit first image following the instruction", "make it blue"], [FIRST, SECOND]),
        (
            "edges",
            ["Make high quality image from canny edge features", "a red cat"],
            [FIRST, SECOND],
        ),
        ("depth_of", ["Make depth features from high quality image"], [SECOND, FIRST]),
        (
            "boxes",
            [
                "Generate high quality image of a red cat with segmentations"
                " cat at location (1, 2) -> (6, 7), hat at location (0, 0) -> (3, 2)"
            ],
            [FIRST],
        ),
        ("write", ['draw "a red cat"'], [FIRST]),
        ("short", ["a red cat"], [FIRST]),
        ("long", ["Describe the given picture in very detail. a red cat"], [FIRST]),
        ("question", ["Question: what is red? Answer: the cat."], [FIRST]),
        ("choice", ["Question: what is red?\nAnswer: the cat."], [FIRST]),
        (
            "grounded",
            [
                "Describe the given picture with segmentations. a red cat with segmentations"
                " cat at location (1, 2) -> (6, 7), hat at location (0, 0) -> (3, 2)"
            ],
            [FIRST],
        ),
    ],
)
def test_the_first_way_to_tell_is_the_one_of_decoding(name, texts, images):
    parts = TEMPLATES[name](RECORD)[0]
    told = [p for p in parts if not isinstance(p, np.ndarray)]
    written = [p if isinstance(p, str) else "".join(s for s, _ in p.pieces()) for p in told]
    assert written == texts
    assert [p for p in parts if isinstance(p, np.ndarray)] == images


def test_an_explanation_is_an_answer_too():
    way = TEMPLATES["choice"](RECORD)[1][0]
    assert isinstance(way, Filled)
    assert way.pieces() == [
        ("Question: what is red?\nAnswer: Let's think step-by-step:", False),
        (" a red cat", True),
        (" So the answer is", False),
        (" the cat", True),
        (".", False),
    ]


def test_what_is_left_of_a_cut_document_and_its_answer_are_the_document():
    record = CodedRecord("pair", ("a red cat on a mat", np.arange(16, dtype=np.int32)))
    ways = TEMPLATES["infill"](record)
    texts = [text for text, image in ways if not isinstance(image, Cut)]
    assert {"".join(piece for piece, _ in text.pieces()) for text in texts} == {
        "a red cat on a mat"
    }
    assert {(" red cat", True), ("mat", True)} & {p for t in texts for p in t.pieces()}
    cuts = [image.answers for _, image in ways if isinstance(image, Cut)]
    assert [(4, 12)] in cuts  # two rows of four
    assert [(5, 7), (9, 11)] in cuts  # the middle
    assert len(cuts) == len({str(cut) for cut in cuts}) == 100


def test_no_answer_is_empty_however_words_are_spaced():
    record = CodedRecord("pair", (" a  red\ncat ", np.arange(16, dtype=np.int32)))
    texts = [text for text, image in TEMPLATES["infill"](record) if not isinstance(image, Cut)]
    assert {"".join(piece for piece, _ in text.pieces()) for text in texts} == {"a red cat"}
    assert all(piece.strip() for text in texts for piece, is_answer in text.pieces() if is_answer)


@pytest.mark.parametrize("name", ["boxes", "grounded", "write", "short", "question", "choice"])
def test_a_map_in_front_of_its_picture_is_not_taken_for_it(name):
    record = replace(RECORD, segments=("a red cat", FIRST, SECOND))
    for way in TEMPLATES[name](record):
        assert [part for part in way if isinstance(part, np.ndarray)] == [SECOND]


def test_every_text_is_told_in_every_wording():
    ways = [way[0] for way in TEMPLATES["short"](RECORD)]
    assert ways == [
        Filled(frame, (text,))
        for text in ("a red cat", "and its hat")
        for frame in CAPTIONS["short"]
    ]
    assert len(TEMPLATES["question"](RECORD)) == 3


@pytest.mark.parametrize("name", sorted(TEMPLATES.keys() - {"plain", "image_first"}))
def test_a_record_without_what_is_told_is_refused(name):
    lacks = ("text", FIRST) if name.endswith("_of") else (FIRST, SECOND)
    with pytest.raises(ValueError, match=r"record 'bare': "):
        TEMPLATES[name](CodedRecord("bare", lacks))
