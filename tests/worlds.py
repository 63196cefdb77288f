"""Scenes to test with, in both layouts, with and without letters."""

from cm3leon_jax.data.scenes import LAYOUTS, Object, Scene, sample_scenes

WORLDS = [(grid, letters) for grid in LAYOUTS for letters in (False, True)]
SCENE = Scene((Object("square", "blue", "large", 3), Object("circle", "red", "small", 0)), "white")


def some(count: int, grid: int = 2, letters: bool = False, seed: int = 5) -> list[Scene]:
    return list(sample_scenes(count, seed, grid, letters))
