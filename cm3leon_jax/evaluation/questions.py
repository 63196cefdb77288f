"""Questions with the answers of people, from the files that VQA datasets come in.

    VQA 2, OK-VQA   a questions file, {"questions": [{image_id, question, question_id}]}, and an
                    annotations file, {"annotations": [{question_id, answers: [{answer}]}]}
    VizWiz          one file, [{image, question, answers: [{answer}]}]
    ScienceQA       one file, {id: {question, choices, answer: number, hint, image, split}}
    *.jsonl         {question_id, image, question, answers: [...], choices: [...]} a line

Pictures lie in a folder, by their file name or by the number at its end, as in
COCO_val2014_000000000042.jpg. Everything else of the files is passed over.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cm3leon_jax.data.records import Skipped
from cm3leon_jax.evaluation.inputs import Entry, Item, Source, list_files
from cm3leon_jax.fields import require

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
NUMBER = re.compile(r"(\d+)$")


def from_questions(path: Path, annotations: Path | None, pictures: Path) -> Source:
    """The questions of a file, with the answers of `annotations` where it has none itself.

    Missing pictures, questions without words and answers without words are listed as bad.
    """
    rows = _read_rows(path, annotations)
    files = list_files(pictures, SUFFIXES)
    by_name = {str(file.relative_to(pictures)): file for file in files}
    by_name |= {file.name: file for file in files}
    by_number = {int(n[1]): file for file in files if (n := NUMBER.search(file.stem))}

    def read(skipped: Skipped) -> Iterator[Entry]:
        for place, row in rows:
            skipped.seen += 1
            try:
                yield Entry(*_to_item(row, by_name, by_number), f"{path.name}:{place}")
            except ValueError as error:
                skipped.add(f"{path.name}:{place}", str(error))

    return read


def _to_item(
    row: Any, by_name: Mapping[str, Path], by_number: Mapping[int, Path]
) -> tuple[Item, Path]:
    require(row is not None, "line", None, "use JSON")
    require(isinstance(row, Mapping), "line", row, "use an object")
    image, question = row.get("image", row.get("image_id")), row.get("question")
    require(image not in (None, ""), "image", image, "use questions that have a picture")
    file = by_number.get(image) if isinstance(image, int) else by_name.get(str(image))
    if file is None:
        raise ValueError(f"image={image!r}: no such picture in --pictures")
    has_words = isinstance(question, str) and bool(question.strip())
    require(has_words, "question", question, "use some text")
    choices = tuple(map(str, row.get("choices", ())))
    answers = row.get("answers", row.get("answer"))
    if choices and isinstance(answers, int):
        in_range = 0 <= answers < len(choices)
        require(in_range, "answer", answers, f"use 0 to {len(choices) - 1}, a choice")
        answers = [choices[answers]]
    listed = answers if isinstance(answers, list) else [answers]
    said = [each.get("answer") if isinstance(each, Mapping) else each for each in listed]
    words = tuple(each for each in said if isinstance(each, str) and each.strip())
    require(bool(words), "answers", answers, "use one or more with words")
    if choices:
        require(words[0] in choices, "answer", words[0], "use the text of a choice")
    hint = row.get("hint")
    context = f"\nContext: {hint}" if hint else ""
    return Item(str(row["question_id"]), "", (), f"{question}{context}", words, choices), file


def _read_rows(path: Path, annotations: Path | None) -> list[tuple[str, Any]]:
    """Where each question is, and its fields."""
    if path.suffix == ".jsonl":
        return list(_read_lines(path))
    content = _read_json(path)
    if isinstance(content, list):  # VizWiz
        return [(str(n), _with_id(row, n)) for n, row in enumerate(content)]
    require(isinstance(content, dict), "questions", str(path), "use a file of questions")
    if "questions" not in content:  # ScienceQA: pictures lie in SPLIT/ID/
        return [(id, _with_folder(id, row)) for id, row in content.items()]
    rule = f"use it: {path.name} has no answers"
    require(annotations is not None, "annotations", None, rule)
    assert annotations is not None
    answers = {row["question_id"]: row["answers"] for row in _read_json(annotations)["annotations"]}
    return [
        (str(row["question_id"]), row | {"answers": answers.get(row["question_id"], [])})
        for row in content["questions"]
    ]


def _read_lines(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        if line.strip():
            try:
                yield str(number), _with_id(json.loads(line), number)
            except ValueError:
                yield str(number), None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: broken JSON: {error}") from None


def _with_id(row: Any, number: int) -> Any:
    return {"question_id": number} | row if isinstance(row, dict) else row


def _with_folder(id: str, row: Any) -> Any:
    if not isinstance(row, dict):
        return row
    image = row.get("image")
    return row | {"question_id": id, "image": image and f"{row.get('split')}/{id}/{image}"}
