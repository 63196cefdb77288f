"""Question files of every true schema, read into items."""

import json

import numpy as np
import pytest
from PIL import Image as Pillow

from cm3leon_jax.data.records import Skipped
from cm3leon_jax.evaluation.questions import from_questions


@pytest.fixture
def folder(tmp_path):
    for name in ("COCO_val2014_000000000042.jpg", "VizWiz_val_00000000.jpg", "test/7/image.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Pillow.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / name)
    return tmp_path


def read(folder, content, name="q.json", annotations=None):
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / name).write_text(text, encoding="utf-8")
    skipped = Skipped()
    found = list(from_questions(folder / name, annotations, folder)(skipped))
    return found, skipped.reasons


def test_vqa_2_has_its_answers_in_another_file(folder):
    asked = {"questions": [{"image_id": 42, "question": "Is it?", "question_id": 420}]}
    people = [{"answer": text, "answer_id": n} for n, text in enumerate(["yes", "no"], 1)]
    answers = folder / "answers.json"
    answers.write_text(json.dumps({"annotations": [{"question_id": 420, "answers": people}]}))
    ((item, picture, origin),), bad = read(folder, asked, annotations=answers)
    assert (item.id, item.question, item.answers) == ("420", "Is it?", ("yes", "no"))
    assert picture.name == "COCO_val2014_000000000042.jpg"
    assert (origin, bad) == ("q.json:420", [])
    with pytest.raises(ValueError, match=r"annotations=None: use it"):
        read(folder, asked)


def test_vizwiz_is_one_list(folder):
    row = {"image": "VizWiz_val_00000000.jpg", "question": "What?", "answerable": 1}
    people = [{"answer": "a can", "answer_confidence": "yes"}] * 10
    ((item, picture, _),), _ = read(folder, [row | {"answers": people}])
    assert item.answers == ("a can",) * 10
    assert picture.name == row["image"]


def test_science_qa_has_choices_and_questions_without_pictures(folder):
    row = {"question": "Which?", "choices": ["a cell", "a rock"], "answer": 1, "split": "test"}
    rows = {
        "7": row | {"image": "image.png", "hint": "Look."},
        "8": row | {"image": None},
        "9": row | {"image": "image.png", "answer": 2},
    }
    ((item, picture, _),), bad = read(folder, rows)
    assert item.question == "Which?\nContext: Look."
    assert (item.choices, item.answers) == (("a cell", "a rock"), ("a rock",))
    assert picture == folder / "test" / "7" / "image.png"
    assert bad[0].startswith("q.json:8: image=None")
    assert bad[1].startswith("q.json:9: image='test/9/image.png': no such picture")


def test_bad_lines_are_listed_with_their_number_and_reason(folder):
    good = {"image": "test/7/image.png", "question": "Which?", "answers": ["a", " "]}
    lines = [
        json.dumps(good),
        "{broken",
        json.dumps(good | {"question": " "}),
        json.dumps(good | {"answers": [""]}),
        json.dumps(good | {"choices": ["b", "c"]}),
        json.dumps(good | {"choices": ["b", "c"], "answers": 2}),
    ]
    ((item, *_),), bad = read(folder, "\n".join(lines), "q.jsonl")
    assert (item.id, item.answers) == ("1", ("a",))
    wanted = ("line=None", "question=' '", "answers=['']", "answer='a'", "answer=2")
    assert [reason.split(": ")[0] for reason in bad] == [f"q.jsonl:{n}" for n in range(2, 7)]
    assert all(f": {start}: use" in reason for start, reason in zip(wanted, bad))
