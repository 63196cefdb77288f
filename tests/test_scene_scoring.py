"""The scene scorer: ground truth scores 1, everything else about 0, each fault in its own score."""

from dataclasses import replace

import numpy as np
import pytest

from cm3leon_jax.data.scene_text import caption
from cm3leon_jax.data.scenes import LAYOUTS, Object, Scene, render_batch, sample_scenes
from cm3leon_jax.evaluation.scenes import (
    bootstrap,
    compare,
    find_scene,
    find_scenes,
    read_captions,
    read_images,
    read_scenes,
    score_captions,
    score_images,
    wilson,
)

COUNT = 2000
WORLDS = [(grid, letters) for grid in LAYOUTS for letters in (False, True)]
CIRCLE, SQUARE = Object("circle", "red", "small", 0), Object("square", "blue", "large", 3)
SCENE = Scene((CIRCLE, SQUARE), "white")


def noisy(images: np.ndarray, deviation: float) -> np.ndarray:
    """Adds Gaussian noise; `deviation` in units of the range."""
    noise = np.random.default_rng(0).standard_normal(images.shape, np.float32)
    return np.clip(np.rint(images + 255 * deviation * noise), 0, 255).astype(np.uint8)


def scores_of(found: Scene) -> dict[str, float]:
    """The scores of one scene where SCENE was asked for."""
    scores = compare(read_scenes([found]), read_scenes([SCENE]))
    return {name: float(values[0]) for name, values in scores.items()}


@pytest.mark.parametrize(("grid", "letters"), WORLDS)
def test_the_scene_is_found_in_its_picture(grid: int, letters: bool) -> None:
    scenes = list(sample_scenes(COUNT, 1, grid, letters))
    images = render_batch(scenes)
    assert find_scenes(images, grid, letters) == scenes
    assert find_scene(images[0], grid, letters) == scenes[0]
    assert read_images(images, grid, letters).whole.all()


@pytest.mark.parametrize(("grid", "deviation"), [(2, 0.05), (2, 0.1), (3, 0.1)])
def test_noise_does_not_hide_a_scene(grid: int, deviation: float) -> None:
    scenes = list(sample_scenes(COUNT, 2, grid))
    scores = score_images(noisy(render_batch(scenes), deviation), scenes)
    assert min(score["mean"] for score in scores.values()) >= 0.999


@pytest.mark.parametrize("grid", LAYOUTS)
def test_wrong_pictures_score_nothing(grid: int) -> None:
    scenes = list(sample_scenes(500, 3, grid))
    images = render_batch(scenes)
    rng = np.random.default_rng(0)
    wrong = {
        "other scenes": np.roll(images, 1, axis=0),
        "uniform noise": rng.integers(0, 256, images.shape).astype(np.uint8),
        "noise with the right mean": noisy(images, 0.5),
        "white": np.full_like(images, 255),
        "gray": np.full_like(images, 128),
    }
    for name, pictures in wrong.items():
        scores = score_images(pictures, scenes)
        assert scores["exact"]["mean"] <= 0.01, name
        assert scores["objects"]["mean"] <= 0.02, name


@pytest.mark.parametrize("grid", LAYOUTS)
def test_a_blob_beside_the_truth_is_not_exact(grid: int) -> None:
    scenes = list(sample_scenes(200, 4, grid))
    images = render_batch(scenes)
    size = LAYOUTS[grid].size
    images[:, size // 2 - 8 : size // 2 + 8, size // 2 - 8 : size // 2 + 8] ^= 0x5A
    images[:, 14:18, : size // 2] = np.arange(size // 2, dtype=np.uint8)[:, None] * 7
    assert score_images(images, scenes)["exact"]["mean"] <= 0.01


def test_pixels_between_the_cells_count() -> None:
    images = render_batch([replace(SCENE, grid=3)])
    assert read_images(images, 3).whole.all()
    images[:, 16:24] = 90
    assert not read_images(images, 3).whole.any()


def test_an_unclear_cell_is_never_a_right_object() -> None:
    images = render_batch([SCENE])
    images[0, :16, :16] = noisy(images[:, :16, :16], 0.3)[0]
    scores = score_images(images, [SCENE])
    assert scores["exact"]["mean"] == 0
    assert scores["objects"]["mean"] <= 0.5


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (SCENE, {"exact": 1, "objects": 1, "attributes": 1}),
        (
            replace(SCENE, background="black"),
            {"exact": 0, "objects": 1, "background": 0, "attributes": 0.8},
        ),
        (
            replace(SCENE, objects=(replace(CIRCLE, colour="green"), SQUARE)),
            {"exact": 0, "objects": 0.5, "colour": 0.5, "shape": 1, "attributes": 0.9},
        ),
        (
            replace(SCENE, objects=(CIRCLE,)),
            {"objects": 0.5, "presence": 0.75, "shape": 0.5, "attributes": 0.65},
        ),
        (
            replace(SCENE, objects=(*SCENE.objects, Object("ring", "red", "small", 1))),
            {"exact": 0, "objects": 2 / 3, "presence": 0.75, "shape": 1, "attributes": 0.95},
        ),
        (
            replace(SCENE, objects=(replace(CIRCLE, cell=1), SQUARE)),
            {"exact": 0, "objects": 0.5, "presence": 0.5, "colour": 0.5},
        ),
        (
            replace(SCENE, objects=()),
            {"exact": 0, "objects": 0, "presence": 0.5, "attributes": 0.3},
        ),
    ],
)
def test_each_fault_costs_what_the_rule_says(found: Scene, expected: dict[str, float]) -> None:
    scores = scores_of(found)
    assert {name: scores[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize(("grid", "letters"), WORLDS)
def test_true_captions_score_one_in_every_wording(grid: int, letters: bool) -> None:
    rng = np.random.default_rng(0)
    scenes = list(sample_scenes(300, 5, grid, letters))
    for texts in ([caption(s) for s in scenes], [caption(s, rng) for s in scenes]):
        scores = score_captions(texts, scenes)
        assert {score["mean"] for score in scores.values()} == {1.0}


def test_captions_of_other_scenes_are_not_exact() -> None:
    scenes = list(sample_scenes(COUNT, 6))
    scores = score_captions([caption(s) for s in scenes[1:] + scenes[:1]], scenes)
    assert scores["exact"]["mean"] == 0
    assert scores["objects"]["mean"] < 0.02


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {"objects": 0, "presence": 0.5, "background": 0}),
        ("a small red circle top left on white", {"objects": 0.5, "background": 1, "size": 0.5}),
        (
            "a small red circle top left and a large blue bottom right on white",
            {"exact": 0, "objects": 0.5, "shape": 0.5, "colour": 1, "size": 1, "presence": 1},
        ),
        (
            "a small red circle top left, a small red circle top left "
            "and a large blue square bottom right on white",
            {"exact": 0, "objects": 2 / 3, "attributes": 1},
        ),
        (
            "a large blue square bottom right and a small red circle top left on white",
            {"exact": 0, "objects": 1, "attributes": 1},
        ),
    ],
)
def test_broken_captions_earn_what_they_say(text: str, expected: dict[str, float]) -> None:
    scores = compare(read_captions([text]), read_scenes([SCENE]))
    assert {name: scores[name][0] for name in expected} == pytest.approx({**expected})
    assert scores["exact"][0] == 0


def test_intervals_hold_their_means() -> None:
    scenes = list(sample_scenes(100, 8))
    images = render_batch(scenes)
    images[:50] = images[50:]
    for name, score in score_images(images, scenes).items():
        assert 0 <= score["low"] <= score["mean"] <= score["high"] <= 1, name
        assert score["count"] == 100
    assert score_images(images, scenes) == score_images(images, scenes)


def test_wilson_agrees_with_published_values() -> None:
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I
    assert wilson(0, 20) == pytest.approx((0, 0.1611), abs=1e-4)
    assert wilson(20, 20) == pytest.approx((0.8389, 1), abs=1e-4)


def test_the_bootstrap_interval_has_the_width_of_the_standard_error() -> None:
    values = np.random.default_rng(0).random(1000)
    low, high = bootstrap(values)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(1000), rel=0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: score_images(render_batch([SCENE]), [SCENE] * 2), "1 images for 2 scenes"),
        (lambda: score_captions([], []), "0 texts for 0 scenes"),
        (lambda: read_images(np.zeros((1, 64, 64, 3), np.uint8)), r"grid=2 needs uint8 \[B, 32"),
        (lambda: read_images(np.zeros((1, 32, 32, 3))), r"images are float64"),
        (lambda: read_images(np.zeros((1, 32, 32, 3), np.uint8), grid=5), "grid=5 is unknown"),
        (lambda: read_scenes([SCENE, replace(SCENE, grid=3)]), r"grids \[2, 3\]"),
    ],
)
def test_wrong_arguments_are_named_in_one_line(call, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
