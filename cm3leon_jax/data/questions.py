"""Questions about pictures: VQA 2 and OK-VQA, VizWiz, ScienceQA.

    v2_OpenEnded_mscoco_train2014_questions.json   questions of {question_id, image_id, question}
    v2_mscoco_train2014_annotations.json           annotations of {question_id, answers: ten of
                                                   {answer}}; OK-VQA: without the v2_
    train2014/COCO_train2014_000000000009.jpg      pictures, or those of 2017 without the prefix

    Annotations/train.json   VizWiz: a list of {image, question, answers: ten of {answer}}
    problems.json            ScienceQA: {id: {question, choices, answer: a number, hint, image,
                             lecture, solution, split}}; images/train/7/image.png

A record is named after its question (VizWiz: its picture, as in its own scores). It is trained on
the answer that most people gave, the first of those given equally often, and keeps all of them.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cm3leon_jax.data.annotations import (
    Entry,
    Index,
    find_image,
    home,
    open_index,
    read_value,
    scan_entries,
)
from cm3leon_jax.data.coco import group
from cm3leon_jax.data.records import Found, Place, Record, start_at


def scan_vqa(files: Sequence[Path], start: Place | None = None) -> Iterator[Found]:
    """The questions of *_questions.json with the answers of the *_annotations.json beside it."""
    for file, place in start_at(files, start):
        answers = open_index(_answers_of(file), "annotations", "question_id")
        subset = read_value(file, "data_subtype") or _subset(file)
        make = partial(_asked, home(file), answers, subset)
        yield from scan_entries(file, "questions", place, make)


def scan_vizwiz(files: Sequence[Path], start: Place | None = None) -> Iterator[Found]:
    """The questions of VizWiz, one about each picture."""
    for file, place in start_at(files, start):
        yield from scan_entries(file, "", place, partial(_seen, home(file)))


def scan_science(
    files: Sequence[Path], start: Place | None = None, *, split: str
) -> Iterator[Found]:
    """The problems of a split that have a picture; the others are passed over, as in the paper.

    Context and options are lines of the question, as they are told; lecture and solution are the
    text, which explains the answer. The answer is the option in its own words.
    """
    for file, place in start_at(files, start):
        make = partial(_problem, home(file))
        yield from scan_entries(file, "", place, make, partial(_is_of, split))


def most_frequent(answers: Sequence[str]) -> str:
    """The answer that most people gave; of equally frequent ones the first given."""
    return Counter(answers).most_common(1)[0][0]


def _asked(root: Path, found: Index, subset: str, entry: Entry) -> Record:
    asked = entry.read()
    annotations = found[asked["question_id"]]
    if not annotations:
        raise ValueError(f"question {asked['question_id']} has no annotation")
    image = asked["image_id"]
    names = f"COCO_{subset}_{image:012d}.jpg", f"{image:012d}.jpg"
    return _record(
        str(asked["question_id"]),
        find_image(root, f"{subset}/{names[0]}", *names),
        asked["question"],
        annotations[0]["answers"],
        group(image),
    )


def _seen(root: Path, entry: Entry) -> Record:
    asked = entry.read()
    name = asked["image"]
    image = find_image(root, name)
    return _record(name, image, asked["question"], asked["answers"], f"vizwiz/{name}")


def _record(
    id: str, image: Path, asked: str, given: Sequence[Mapping[str, Any]], where: str
) -> Record:
    answers = tuple(text for one in given if (text := " ".join(one["answer"].split())))
    if not answers:
        raise ValueError(f"question {id}: all {len(given)} answers are empty")
    answer = most_frequent(answers)
    question = " ".join(asked.split())
    return Record(id, (image,), question=question, answer=answer, answers=answers, group=where)


def _is_of(split: str, entry: Entry) -> bool:
    problem = entry.read()
    return problem["split"] == split and bool(problem["image"])


def _problem(root: Path, entry: Entry) -> Record:
    problem, id = entry.read(), str(entry.key)
    choices, number = problem["choices"], problem["answer"]
    if not 0 <= number < len(choices):
        raise ValueError(f"answer={number}: there are {len(choices)} choices")
    options = " ".join(f"({chr(65 + i)}) {choice}" for i, choice in enumerate(choices))
    context = " ".join(problem.get("hint", "").split())
    lines = [problem["question"].strip(), f"Context: {context}" if context else ""]
    reasons = (problem.get("lecture", ""), problem.get("solution", ""))
    explanation = " ".join(" ".join(reasons).split())
    image = find_image(root, f"{problem['split']}/{id}/{problem['image']}")
    return Record(
        id=id,
        segments=(explanation, image) if explanation else (image,),
        question="\n".join(line for line in (*lines, f"Options: {options}") if line),
        answer=str(choices[number]),
        group=f"scienceqa/{id}",
    )


def _answers_of(questions: Path) -> Path:
    name = questions.name.replace("OpenEnded_", "").replace("questions", "annotations")
    if name == questions.name:
        raise ValueError(f"{questions}: name the file of questions, *_questions.json")
    beside = questions.with_name(name)
    root = home(questions)
    places = [root / name, root / "annotations" / name, root / "Annotations" / name]
    return next((path for path in (beside, *places) if path.is_file()), beside)


def _subset(questions: Path) -> str:
    found = re.search(r"(train|val|test)\d{4}", questions.name)
    return found[0] if found else ""
