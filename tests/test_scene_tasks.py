"""Scores of the instruction tasks: truth scores 1, the answer to another request 0."""

from types import SimpleNamespace

import numpy as np
import pytest

from cm3leon_jax import config
from cm3leon_jax.data.records import is_held_out
from cm3leon_jax.data.scene_records import records
from cm3leon_jax.evaluation import scene_tasks, suites
from cm3leon_jax.evaluation.scene_tasks import TASKS, evaluate_task, held_out_records, of_templates
from cm3leon_jax.evaluation.scenes import wilson
from cm3leon_jax.presets import preset
from cm3leon_jax.tokens import wording

DATA = preset("tiny").data
COUNT = 12


def fits(cut: str, text: str) -> bool:
    """Whether a text with at most one hole was cut out of this one."""
    first, *rest = cut.split("<mask>")
    return text == first if not rest else text.startswith(first) and text.endswith(rest[0])


def answer_with(task: str, shift: int) -> SimpleNamespace:
    """A generator that knows the answers, and gives those of the request `shift` places on."""
    found = held_out_records(DATA, 2, TASKS[task][0], COUNT)
    found = found[shift:] + found[:shift]
    texts = [str(record.segments[0]) for record in found]
    answers = [record.answer for record in found]
    pictures = [record.segments[-1] for record in found]

    def write(images: list, style: str = "short", seed: int = 0) -> list[str]:
        if style != "grounded":
            return texts
        places = [wording.places(record.boxes) for record in found]
        return [f"{text} with segmentations {place}" for text, place in zip(texts, places)]

    def explain(images: list, questions: list[str], explain: bool, seed: int = 0) -> list[str]:
        if not explain:
            return answers
        return [f"{text} So the answer is {answer}." for text, answer in zip(texts, answers)]

    def draw(*asked: object, seed: int = 0) -> list[np.ndarray]:
        return pictures

    def to_map(images: list, kind: str, seed: int = 0) -> list[np.ndarray]:
        return [record.segments[1] for record in found]

    def fill(document: tuple, seed: int = 0) -> list:
        given = [i for i, text in enumerate(asked) if fits(document[0], text)]
        return [texts[given[0]], pictures[given[0]]]

    asked = texts[-shift:] + texts[:-shift] if shift else texts
    return SimpleNamespace(
        experiment=preset("tiny"), images=draw, edit=draw, from_structure=draw, from_boxes=draw,
        to_structure=to_map, caption=write, answer=explain, infill=fill, parts=list,
        document=lambda *parts: parts, mask_image=lambda image, box: image,
    )  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_the_truth_is_right_and_the_answer_to_another_request_is_not(task):
    result = evaluate_task(answer_with(task, 0), task, DATA, COUNT)
    assert result.score()["mean"] == 1
    assert result.score()["count"] == COUNT == len(result.asked)
    other = evaluate_task(answer_with(task, 1), task, DATA, COUNT)
    alike = {"question": 0.5, "choice": 0.5, "segmentation_of": 0.1}  # by chance
    assert other.score()["mean"] <= alike.get(TASKS[task][0], 0)


def test_what_is_asked_is_held_out_of_every_task():
    for template, _ in TASKS.values():
        found = held_out_records(DATA, 2, template, COUNT)
        assert len(found) == COUNT
        assert all(is_held_out(record.group, DATA.held_out) for record in found)


def test_places_and_sizes_are_not_said_beside_maps_and_boxes():
    for task in ("edges", "segmentation", "boxes"):
        for record in records(30, 0, task=task):
            assert not {"top", "bottom", "small", "large"} & set(str(record.segments[0]).split())


def test_scores_are_given_for_what_was_trained_on():
    assert of_templates(("plain",)) == ["composition", "captions"]
    assert of_templates(()) == []
    assert {*of_templates(("plain", *DATA.tasks)), "paragraphs"} == {*scene_tasks.TASKS}
    assert config.Data().tasks == ()


@pytest.mark.parametrize("times", [1, 8])
def test_a_true_sentence_is_no_paragraph_however_often_it_is_said(times):
    generator = answer_with("paragraphs", 0)
    first = [text.partition(". ")[0] + "." for text in generator.caption([])]
    generator.caption = lambda *asked, **how: [" ".join([text] * times) for text in first]
    assert evaluate_task(generator, "paragraphs", DATA, COUNT).score()["mean"] == 0


def test_the_suite_scores_what_the_bundle_was_trained_on(tmp_path):
    plain = config.replace(preset("tiny"), {"data.tasks": ()})
    generator = answer_with("composition", 0)
    generator.experiment, generator.memory, generator.int8 = plain, None, False
    found = suites.scenes(generator, suites.Settings(tmp_path, plain.data, count=COUNT))
    all_right = {"mean": 1.0, "low": wilson(COUNT, COUNT)[0], "high": 1.0, "count": COUNT}
    assert found.scores == {"composition": all_right, "captions": all_right}
    assert found.protocol["tasks"] == {"composition": COUNT, "captions": COUNT}
    assert found.protocol["held_out"] == plain.data.held_out
    assert len(found.cards) == 12
    other = config.replace(plain, {"data.source": "emoji"})
    generator.experiment = other
    with pytest.raises(ValueError, match=r"data\.source='emoji': use a bundle trained on"):
        suites.scenes(generator, suites.Settings(tmp_path, other.data, count=COUNT))


def test_a_task_that_the_model_cannot_be_asked_is_refused_alone_and_done_ones_are_kept(tmp_path):
    plain = config.replace(preset("tiny"), {"data.tasks": ()})
    generator = answer_with("composition", 0)
    generator.experiment, generator.memory, generator.int8 = plain, None, False
    settings = suites.Settings(tmp_path, plain.data, count=COUNT)

    def refuse(*asked: object, **how: object) -> None:
        raise ValueError("a prompt of 90 tokens does not fit")

    draw, generator.images = generator.images, refuse
    found = suites.scenes(generator, settings)
    assert found.scores["composition"] == {"count": COUNT, "refused": COUNT}
    assert found.scores["captions"]["mean"] == 1
    assert found.protocol["tasks"] == {"composition": COUNT, "captions": COUNT}
    assert found.bad == ["composition: a prompt of 90 tokens does not fit"]
    (tmp_path / "tasks" / "00000.json").unlink()
    generator.images, generator.caption = draw, refuse
    again = suites.scenes(generator, settings)
    assert [again.scores[name]["mean"] for name in ("composition", "captions")] == [1, 1]
    assert again.bad == []
    assert len(again.cards) == 12
    (tmp_path / "tasks" / "00001.json").unlink()
    (tmp_path / "tasks" / "00000.json").unlink()
    generator.images = refuse
    with pytest.raises(ValueError, match="all 2 tasks were refused; the first one, composition"):
        suites.scenes(generator, settings)
