"""Scenes: which there are, in which order, and that what is drawn is exactly what they hold."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from worlds import SCENE, WORLDS, some

from cm3leon_jax.data.scene_records import records
from cm3leon_jax.data.scene_text import (
    caption,
)
from cm3leon_jax.data.scenes import (
    BACKGROUNDS,
    COLOURS,
    LAYOUTS,
    LETTERS,
    MAX_OBJECTS,
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
