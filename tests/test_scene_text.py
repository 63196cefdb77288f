"""What is said and asked of scenes, and the records of them, is exactly what a scene holds."""

import re
from dataclasses import replace

import numpy as np
import pytest
from worlds import SCENE, WORLDS, some

from cm3leon_jax.data.scene_records import records
from cm3leon_jax.data.scene_text import (
    NUMBERS,
    caption,
    edit,
    outline,
    parse_caption,
    questions,
    scan_caption,
)
from cm3leon_jax.data.scenes import (
    LAYOUTS,
    MAX_OBJECTS,
    PLACES,
    SHAPES,
    Object,
    Scene,
    boxes,
    noun,
    render,
)


def test_the_canonical_caption() -> None:
    assert caption(SCENE) == (
        "a small red circle top left and a large blue square bottom right on white"
    )
    three = replace(SCENE, objects=(*SCENE.objects, Object("A", "pink", "small", 1)))
    assert caption(three) == (
        "a small red circle top left, a small pink letter A top right "
        "and a large blue square bottom right on white"
    )


@pytest.mark.parametrize(("grid", "letters"), WORLDS)
def test_parsing_inverts_every_wording_of_a_caption(grid: int, letters: bool) -> None:
    rng = np.random.default_rng(0)
    for scene in some(500, grid, letters):
        assert parse_caption(caption(scene), grid) == scene
        assert parse_caption(caption(scene, rng), grid) == scene
    assert parse_caption(f"  {caption(scene).upper()}. ", grid) == scene


def test_a_caption_of_any_number_of_objects_can_be_parsed() -> None:
    objects = tuple(Object(SHAPES[i % 5], "red", "small", i) for i in range(9))
    for count in range(10):
        scene = Scene(objects[:count], "gray", 3)
        assert parse_caption(caption(scene), 3) == scene


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a small red circle top left",
        "a small red circle top left on pink",
        "a small red circle on white",
        "a red circle top left on white",
        "a small red circle center on white",
        "a small red red circle top left on white",
        "not a small red circle top left on white",
        "a large blue square bottom right and a small red circle top left on white",
        "a small red circle top left and a small red circle top left on white",
        "a small red circle top left, a large blue square bottom right on white",
        "a small red circle top left on white on black",
        "a small red circle top left on white a small red circle",
    ],
)
def test_a_broken_caption_is_no_scene(text: str) -> None:
    assert parse_caption(text) is None


def test_a_broken_caption_is_read_in_part() -> None:
    phrases, background = scan_caption("a small red top left and a blue blob bottom right on whi")
    assert phrases == [(None, "red", "small", 0), (None, "blue", None, 3)]
    assert background is None
    assert scan_caption("on black") == ([], "black")


def test_any_text_can_be_read() -> None:
    rng = np.random.default_rng(4)
    words = [
        "a",
        "on",
        "and",
        ",",
        ".",
        "white",
        "small",
        "red",
        "circle",
        "letter",
        "b",
        "nothing",
    ]
    words += ["top", "left", "center", "7", "ü", "<mask>"]
    for _ in range(2000):
        text = " ".join(rng.choice(words, rng.integers(0, 12)))
        for grid in LAYOUTS:
            scene = parse_caption(text, grid)
            assert scene is None or parse_caption(caption(scene), grid) == scene
            assert len(scan_caption(text, grid)[0]) <= 12


def answer(scene: Scene, question: str) -> str:
    """Answers a question by brute force: filters the objects by every word of it."""
    words = question.removesuffix("?")
    if words == "what colour is the background":
        return scene.background

    def fits(o: Object, text: str) -> bool:
        facts = {o.size, o.colour, *noun(o.shape).split(), *scene.place(o).split()}
        told = [w for w in text.split() if w not in ("the", "object", "objects", "there", "are")]
        at = next((p for p in sorted(PLACES[scene.grid], key=len)[::-1] if text.endswith(p)), None)
        return set(told) <= facts and (at is None or scene.place(o) == at)

    if match := re.fullmatch(r"how many (.*)", words):
        return NUMBERS[sum(fits(o, match[1]) for o in scene.objects)]
    if match := re.fullmatch(r"is there an? (.*)", words):
        return "yes" if any(fits(o, match[1]) for o in scene.objects) else "no"
    match = re.fullmatch(r"(?:what (colour|shape|size)|where) is (.*)", words)
    assert match, question
    (o,) = [o for o in scene.objects if fits(o, match[2])]
    found = {"colour": o.colour, "shape": noun(o.shape), "size": o.size, None: scene.place(o)}
    return found[match[1]]


@pytest.mark.parametrize(("grid", "letters"), WORLDS)
def test_every_answer_is_right_and_every_question_has_one_answer(grid: int, letters: bool) -> None:
    rng = np.random.default_rng(1)
    asked = 0
    for scene in some(400, grid, letters):
        for question, expected in questions(scene, rng):
            assert answer(scene, question) == expected, (scene, question)
            asked += 1
    assert asked > 7 * 400


def test_yes_and_no_are_about_equally_often_right() -> None:
    rng = np.random.default_rng(2)
    answers = [a for s in some(1000) for q, a in questions(s, rng) if q.startswith("is there")]
    assert 0.45 < answers.count("yes") / len(answers) < 0.55


@pytest.mark.parametrize(("grid", "letters"), WORLDS)
def test_an_edit_changes_the_one_thing_it_names(grid: int, letters: bool) -> None:
    rng = np.random.default_rng(3)
    kinds = set()
    for scene in some(600, grid, letters):
        instruction, after = edit(scene, rng)
        assert 1 <= len(after.objects) <= MAX_OBJECTS
        old, new = set(scene.objects) - set(after.objects), set(after.objects) - set(scene.objects)
        kind = instruction.split()[0]
        kinds.add(kind)
        if "background" in instruction:
            assert not old | new
            assert instruction.endswith(after.background)
            assert after.background != scene.background
            continue
        assert after.background == scene.background
        assert (len(old), len(new)) == {"add": (0, 1), "remove": (1, 0)}.get(kind, (1, 1))
        if kind == "move":
            assert instruction.endswith(f"to the {after.place(*new)}")
        if old and new:
            (a,), (b,) = old, new
            assert sum(getattr(a, f) != getattr(b, f) for f in a.__dataclass_fields__) == 1
    assert kinds == {"add", "remove", "move", "make", "turn"}


@pytest.mark.parametrize("task", ["plain", "edit", "edges", "segmentation_of"])
def test_records_hold_the_scene_they_are_named_after(task: str) -> None:
    scenes = {s.id: s for s in some(60, seed=9)}
    made = list(records(60, seed=9, task=task))
    assert [r.id for r in made] == list(scenes)
    for record in made:
        scene = scenes[record.id]
        picture = record.segments[0] if task == "edit" else record.segments[-1]
        assert (picture == render(scene)).all()
        if task == "edit":
            assert record.instruction
            assert (record.segments[0] != record.segments[1]).any()
        else:
            assert record.segments[0] == (caption if task == "plain" else outline)(scene)
        if task == "plain":
            assert list(record.boxes) == boxes(scene)
            assert record.answer == answer(scene, record.question or "")


def test_words_are_written_from_the_first_cell_on() -> None:
    made = list(records(90, seed=9, task="write"))
    assert len({r.id for r in made}) == 90 == len({r.segments[0] for r in made})
    assert {len(str(r.segments[0])) for r in made} == {1, 2, 3}
    for record in made:
        text, image = record.segments
        drawn = tuple(Object(o, "blue", "large", cell) for cell, o in enumerate(str(text)))
        assert (image == render(Scene(drawn, "white"))).all()
    assert [r.id for r in records(30, seed=9, task="write", start=60)] == [r.id for r in made[60:]]


def test_records_repeat_for_the_same_seed() -> None:
    first, again, other = ([(r.id, r.question) for r in records(20, seed)] for seed in (1, 1, 2))
    assert first == again != other
