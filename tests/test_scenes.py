"""Scenes: what is drawn, said and asked is exactly what the scene holds."""

import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

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
    BACKGROUNDS,
    COLOURS,
    LAYOUTS,
    LETTERS,
    MAX_OBJECTS,
    PLACES,
    SHAPES,
    SIZES,
    Object,
    Scene,
    boxes,
    count_scenes,
    edges,
    noun,
    paint_labels,
    render,
    render_batch,
    sample_scenes,
    sample_words,
    segmentation,
    shape_mask,
)

WORLDS = [(grid, letters) for grid in LAYOUTS for letters in (False, True)]
SCENE = Scene((Object("square", "blue", "large", 3), Object("circle", "red", "small", 0)), "white")


def some(count: int, grid: int = 2, letters: bool = False, seed: int = 5) -> list[Scene]:
    return list(sample_scenes(count, seed, grid, letters))


def test_objects_are_kept_in_raster_order() -> None:
    assert [o.cell for o in SCENE.objects] == [0, 3]
    assert replace(SCENE, objects=SCENE.objects[::-1]) == SCENE


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Object("cube", "red", "small", 0), r"shape='cube' .*circle.* or a letter A-Z"),
        (lambda: Object("AB", "red", "small", 0), r"shape='AB' is unknown"),
        (lambda: Object("ring", "mauve", "small", 0), r"colour='mauve' .*red"),
        (lambda: Object("ring", "red", "huge", 0), r"size='huge' .*small, large"),
        (lambda: Scene((), "red"), r"background='red' .*white"),
        (lambda: Scene((), "white", 4), r"grid=4 .*2, 3"),
        (lambda: Scene((Object("ring", "red", "small", 4),), "white"), r"cell=4 .*0 to 3"),
        (lambda: Scene((Object("ring", "red", "small", 1),) * 2, "white"), r"\[1, 1\] repeat"),
        (lambda: next(sample_scenes(1, 0, grid=5)), r"grid=5"),
        (lambda: next(sample_scenes(10**9, 0)), r"count=1000000000 .*half"),
        (lambda: next(records(1, 0, task="depth")), r"task='depth': .*segmentation"),
        (lambda: next(sample_words(10**9, 0)), r"count=1000000000 .*half"),
    ],
)
def test_wrong_values_are_named_in_one_line(build, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        build()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("grid", "letters"), WORLDS)
def test_equal_ids_mean_equal_scenes_and_equal_pixels(grid: int, letters: bool) -> None:
    scenes = some(3000, grid, letters)
    assert len({s.id for s in scenes}) == len(set(scenes)) == 3000
    assert len({render(s).tobytes() for s in scenes}) == 3000
    assert len({caption(s) for s in scenes}) == 3000


def test_the_same_seed_gives_the_same_scenes_in_another_process() -> None:
    code = (
        "from cm3leon_jax.data.scenes import *; import hashlib;"
        "print(hashlib.sha256(b''.join(s.id.encode() + render(s).tobytes()"
        " for s in sample_scenes(50, 3))).hexdigest())"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1


def test_a_longer_collection_begins_with_the_shorter_one() -> None:
    assert some(200)[:50] == some(50)


@pytest.mark.parametrize(("grid", "letters"), WORLDS)
def test_a_collection_can_be_entered_at_any_scene(grid: int, letters: bool) -> None:
    whole = some(300, grid, letters)
    assert list(sample_scenes(100, 5, grid, letters, start=120)) == whole[120:220]
    assert len(set(whole)) == 300
    assert [len(scene.objects) for scene in whole[:6]] == [1, 2, 3, 1, 2, 3]


def test_scenes_of_few_objects_all_come_once() -> None:
    scenes = some(6000)
    singles = {scene for scene in scenes if len(scene.objects) == 1}
    assert len(singles) == 4 * 4 * 80
    assert len(set(scenes)) == 6000
    assert [len(scene.objects) for scene in scenes[-4:]] == [2, 3, 2, 3]
    assert all(len(scene.objects) > 1 for scene in sample_scenes(9, 5, start=4_000_000))


def test_scenes_are_drawn_evenly_and_anew_for_another_seed() -> None:
    scenes = some(6000, 3)
    for values in (
        [scene.background for scene in scenes],
        [o.shape for scene in scenes for o in scene.objects],
        [o.colour for scene in scenes for o in scene.objects],
        [o.cell for scene in scenes for o in scene.objects],
    ):
        _, counts = np.unique(values, return_counts=True)
        expected = len(values) / len(counts)
        assert ((counts - expected) ** 2 / expected).sum() < len(counts) + 5 * len(counts) ** 0.5
    assert len(set(scenes) & set(some(6000, 3, seed=6))) < 4000


def test_every_value_is_drawn() -> None:
    scenes = some(1500, 3, letters=True)
    objects = [o for s in scenes for o in s.objects]
    assert {o.shape for o in objects} == {*SHAPES, *LETTERS}
    assert {o.colour for o in objects} == {*COLOURS}
    assert {o.size for o in objects} == {*SIZES}
    assert {o.cell for o in objects} == {*range(9)}
    assert {s.background for s in scenes} == {*BACKGROUNDS}
    assert {len(s.objects) for s in scenes} == {*range(1, MAX_OBJECTS + 1)}


def test_the_number_of_scenes_is_counted_right() -> None:
    assert count_scenes(2) == 4 * (4 * 80 + 6 * 80**2 + 4 * 80**3)


@pytest.mark.parametrize("grid", LAYOUTS)
def test_cells_start_on_the_patches_of_a_tokenizer(grid: int) -> None:
    for cell in range(grid**2):
        assert all(
            at % 8 == 0 and at + 16 <= LAYOUTS[grid].size for at in LAYOUTS[grid].corner(cell)
        )


def test_both_worlds_draw_the_same_cells() -> None:
    small, large = render(SCENE), render(replace(SCENE, grid=3))
    assert (small[:16, :16] == large[:16, :16]).all()
    assert (small[16:, 16:] == large[24:40, :16]).all()


def test_a_picture_holds_its_colours() -> None:
    image = render(SCENE)
    assert image.dtype == np.uint8
    assert image.shape == (32, 32, 3)
    assert tuple(image[8, 8]) == COLOURS["red"]
    assert tuple(image[24, 24]) == COLOURS["blue"]
    assert tuple(image[0, 31]) == BACKGROUNDS["white"]
    assert (render_batch([SCENE])[0] == image).all()


def test_colours_and_drawings_are_far_apart() -> None:
    palette = np.array([*COLOURS.values(), *BACKGROUNDS.values()], float)
    distances = np.linalg.norm(palette[:, None] - palette[None], axis=-1)
    assert distances[~np.eye(len(palette), dtype=bool)].min() > 100
    masks = np.stack([shape_mask(s, z).ravel() for s in SHAPES for z in SIZES])
    differences = np.square(masks[:, None] - masks[None]).sum(-1)
    assert differences[~np.eye(len(masks), dtype=bool)].min() > 17


def test_masks_of_letters_are_all_different() -> None:
    for size in SIZES:
        assert len({shape_mask(letter, size).tobytes() for letter in LETTERS}) == 26


@pytest.mark.parametrize(("grid", "letters"), WORLDS)
def test_maps_and_boxes_fit_the_picture(grid: int, letters: bool) -> None:
    for scene in some(150, grid, letters):
        drawn = (render(scene) != np.array(BACKGROUNDS[scene.background], np.uint8)).any(-1)
        labels, outline = segmentation(scene), edges(scene)[..., 0] > 0
        assert (drawn[labels > 0]).all()
        assert (labels[outline] > 0).all()
        names = {0} | {1 + (SHAPES + LETTERS).index(o.shape) for o in scene.objects}
        assert set(np.unique(labels)) == names

        covered = np.zeros_like(drawn)
        for (name, (x0, y0, x1, y1)), o in zip(boxes(scene), scene.objects, strict=True):
            assert name == f"{o.colour} {noun(o.shape)}"
            inside = drawn[y0:y1, x0:x1]
            assert inside[0].any()
            assert inside[-1].any()
            assert inside[:, 0].any()
            assert inside[:, -1].any()
            covered[y0:y1, x0:x1] = True
        assert not (drawn & ~covered).any()


def test_edges_are_one_pixel_wide() -> None:
    square = edges(Scene((Object("square", "red", "large", 0),), "white"))[..., 0] > 0
    assert square.sum() == 4 * 13


def test_every_label_has_its_own_colour() -> None:
    labels = np.arange(1 + len(SHAPES + LETTERS), dtype=np.uint8)[None]
    assert len(np.unique(paint_labels(labels)[0], axis=0)) == labels.size


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
