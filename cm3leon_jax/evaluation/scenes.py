"""Scores pictures and captions of procedural scenes by analysis by synthesis.

A picture is explained by the renderer that drew the training data: for every background and cell,
the drawing (or emptiness) with the least squared error. No network judges, so the score is exact:
ground truth scores 1 and any other scene 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from cm3leon_jax.data.scene_text import parse_caption, scan_caption
from cm3leon_jax.data.scenes import (
    BACKGROUNDS,
    CELL,
    COLOURS,
    LAYOUTS,
    LETTERS,
    SHAPES,
    SIZES,
    Object,
    Scene,
    shape_mask,
)

MAX_RESIDUAL = 0.15
"""A cell is clear if the RMS difference to its explanation is at most this, in units of the range.

Noise of sd 0.1 passes and uniform noise (above 0.25) does not. A blurred scene may pass, but is
then read as what it looks like: 2 % are still right at a blur of sd 3 pixels.
"""

CHUNK = 512  # pictures explained at once: bounds the memory
FORMS, GROUNDS, PAINTS, EXTENTS = SHAPES + LETTERS, (*BACKGROUNDS,), (*COLOURS,), (*SIZES,)


@dataclass(frozen=True)
class Reading:
    """What pictures or captions show, as indices into FORMS, PAINTS, EXTENTS and GROUNDS.

    [B] per scene, [B, C] per cell; -1 where there is nothing or it is not said.
    """

    present: np.ndarray  # bool [B, C]
    shape: np.ndarray  # int [B, C]
    colour: np.ndarray  # int [B, C]
    size: np.ndarray  # int [B, C]
    clear: np.ndarray  # bool [B, C]: the cell is well explained
    background: np.ndarray  # int [B]
    count: np.ndarray  # int [B]: objects claimed, those without a cell of their own included
    whole: np.ndarray  # bool [B]: nothing is left unexplained


def read_scenes(scenes: Sequence[Scene]) -> Reading:
    """The truth of scenes of one world."""
    if len(grids := {scene.grid for scene in scenes}) != 1:
        raise ValueError(f"scenes have the grids {sorted(grids)}; give scenes of exactly one grid")
    reading = _blank(len(scenes), grids.pop())
    for b, scene in enumerate(scenes):
        reading.background[b] = GROUNDS.index(scene.background)
        reading.count[b] = len(scene.objects)
        for o in scene.objects:
            _write(reading, b, o.cell, o.shape, o.colour, o.size)
    return reading


def read_captions(texts: Sequence[str], grid: int = 2) -> Reading:
    """What captions say; `whole` only for those that `parse_caption` accepts.

    Of two objects in one cell the first is read and both are counted.
    """
    reading = _blank(len(texts), grid)
    for b, text in enumerate(texts):
        phrases, background = scan_caption(text, grid)
        reading.whole[b] = parse_caption(text, grid) is not None
        reading.count[b] = len(phrases)
        if background is not None:
            reading.background[b] = GROUNDS.index(background)
        for shape, colour, size, cell in phrases:
            if cell is not None and not reading.present[b, cell]:
                _write(reading, b, cell, shape, colour, size)
    return reading


def read_images(images: np.ndarray, grid: int = 2, letters: bool = False) -> Reading:
    """Explain pictures, uint8 [B, Y, X, 3], from their pixels alone; `letters` also tries A-Z."""
    if grid not in LAYOUTS:
        raise ValueError(f"grid={grid} is unknown; use one of {', '.join(map(str, LAYOUTS))}")
    size = LAYOUTS[grid].size
    if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
        raise ValueError(
            f"images are {images.dtype} {list(images.shape)}; grid={grid} needs uint8 "
            f"[B, {size}, {size}, 3]"
        )
    if len(images) == 0:
        return _blank(0, grid)
    starts = range(0, len(images), CHUNK)
    parts = [_explain(images[i : i + CHUNK], grid, letters) for i in starts]
    return Reading(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Reading)))


def find_scenes(images: np.ndarray, grid: int = 2, letters: bool = False) -> list[Scene]:
    """The scene that explains each picture best, however badly: uint8 [B, Y, X, 3] -> B scenes."""
    found = read_images(images, grid, letters)
    return [
        Scene(
            tuple(
                Object(
                    FORMS[found.shape[b, c]],
                    PAINTS[found.colour[b, c]],
                    EXTENTS[found.size[b, c]],
                    int(c),
                )
                for c in np.flatnonzero(found.present[b])
            ),
            GROUNDS[found.background[b]],
            grid,
        )
        for b in range(len(images))
    ]


def find_scene(image: np.ndarray, grid: int = 2, letters: bool = False) -> Scene:
    """The scene that explains a picture, uint8 [Y, X, 3], best."""
    return find_scenes(image[None], grid, letters)[0]


def compare(found: Reading, truth: Reading) -> dict[str, np.ndarray]:
    """Score each scene, float [B] in 0..1:

    exact       background and all cells right, and nothing unclear
    objects     objects right in cell, shape, colour and size, in clear cells, over the larger of
                the true and the found number: an extra object costs as much as a missing one
    presence    cells rightly empty or taken, over all cells
    shape, colour, size   right over the true objects; a missing object is wrong in all three
    background  right or not
    attributes  mean of the last five; it takes best guesses from unclear cells too
    """
    both = found.present & truth.present
    right = {
        name: both & (getattr(found, name) == getattr(truth, name))
        for name in ("shape", "colour", "size")
    }
    matched = (right["shape"] & right["colour"] & right["size"] & found.clear).sum(1)
    background = found.background == truth.background
    complete = (matched == truth.count) & (found.count == truth.count)
    scores = {
        "exact": (complete & background & found.whole).astype(float),
        "objects": _share(matched, np.maximum(truth.count, found.count)),
        "presence": (found.present == truth.present).mean(1),
        **{name: _share(cells.sum(1), truth.count) for name, cells in right.items()},
        "background": background.astype(float),
    }
    parts = ("presence", "shape", "colour", "size", "background")
    return scores | {"attributes": np.mean([scores[name] for name in parts], axis=0)}


def score_images(
    images: np.ndarray, scenes: Sequence[Scene], letters: bool = False
) -> dict[str, dict[str, float]]:
    """How well pictures, uint8 [B, Y, X, 3], show the scenes asked for; see `compare`.

    Per score its mean, the bounds `low` and `high` of a 95 % interval, and the `count` of scenes.
    """
    _check_count("images", len(images), len(scenes))
    truth = read_scenes(scenes)
    return _summarise(compare(read_images(images, scenes[0].grid, letters), truth))


def score_captions(texts: Sequence[str], scenes: Sequence[Scene]) -> dict[str, dict[str, float]]:
    """How well captions tell the scenes; see `score_images`. Any wording of `caption` is right."""
    _check_count("texts", len(texts), len(scenes))
    truth = read_scenes(scenes)
    return _summarise(compare(read_captions(texts, scenes[0].grid), truth))


def wilson(successes: float, count: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927): honest also at 0 and at 1."""
    z, share = 1.959964, successes / count
    centre = share + z * z / (2 * count)
    spread = z * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, float(centre - spread) / scale), min(1.0, float(centre + spread) / scale)


def bootstrap(values: np.ndarray, rounds: int = 1000) -> tuple[float, float]:
    """95 % percentile interval of a mean, from seeded resamples of the values [B]."""
    rng = np.random.default_rng(0)
    means = [rng.choice(values, len(values)).mean() for _ in range(rounds)]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def _explain(images: np.ndarray, grid: int, letters: bool) -> Reading:
    """Least squares over all drawings of every cell, for each background; the best background wins.

    With x a cell minus the background, m a mask and d a paint minus the background, the error is
    |x|^2 - (2 m.x.d - |m|^2 |d|^2), so one product of cells and masks serves all paints.
    """
    forms = FORMS if letters else SHAPES
    masks = np.stack([shape_mask(s, e).ravel() for s in forms for e in EXTENTS])  # [K, P]
    paints = np.array([COLOURS[c] for c in PAINTS], np.float32) / 255
    pixels = images.astype(np.float32) / 255
    cells, gaps = _cut(pixels, grid)  # [B, C, P, 3], [B, G, 3]
    energy, total = np.square(cells).sum((2, 3)), cells.sum(2)  # [B, C], [B, C, 3]
    under = np.einsum("kp,bcpi->bcki", masks, cells, optimize=True)  # [B, C, K, 3]
    areas, areas_squared = masks.sum(1), np.square(masks).sum(1)  # [K]

    errors, choices, gap_errors = [], [], []
    for ground in np.array([BACKGROUNDS[name] for name in GROUNDS], np.float32) / 255:
        empty = energy - 2 * total @ ground + CELL**2 * (ground @ ground)
        d = paints - ground  # [N, 3]
        gains = 2 * (under - areas[:, None] * ground) @ d.T
        gains -= areas_squared[:, None] * np.square(d).sum(1)  # [B, C, K, N]
        gains = gains.reshape(*empty.shape, -1)
        best = gains.argmax(-1)
        gain = np.take_along_axis(gains, best[..., None], -1)[..., 0]
        errors.append(empty - np.maximum(gain, 0))
        choices.append(np.where(gain > 0, best, -1))
        gap_errors.append(np.square(gaps - ground).sum((1, 2)))
    error, choice, gap_error = np.stack(errors), np.stack(choices), np.stack(gap_errors)

    background = (error.sum(2) + gap_error).argmin(0)  # [B]
    rows = np.arange(len(images))
    error, choice, gap_error = (a[background, rows] for a in (error, choice, gap_error))
    present = choice >= 0
    form, paint = np.divmod(choice, len(paints))
    shape, size = np.divmod(form, len(EXTENTS))
    clear = error <= MAX_RESIDUAL**2 * 3 * CELL**2
    return Reading(
        present=present,
        shape=np.where(present, shape, -1),
        colour=np.where(present, paint, -1),
        size=np.where(present, size, -1),
        clear=clear,
        background=background,
        count=present.sum(1),
        whole=clear.all(1) & (gap_error <= MAX_RESIDUAL**2 * 3 * gaps.shape[1]),
    )


def _cut(pixels: np.ndarray, grid: int) -> tuple[np.ndarray, np.ndarray]:
    """[B, Y, X, 3] -> the cells [B, C, CELL * CELL, 3] and all pixels between cells [B, G, 3]."""
    layout = LAYOUTS[grid]
    between = np.ones((layout.size, layout.size), bool)
    cells = []
    for cell in range(grid**2):
        y, x = layout.corner(cell)
        between[y : y + CELL, x : x + CELL] = False
        cells.append(pixels[:, y : y + CELL, x : x + CELL].reshape(len(pixels), CELL**2, 3))
    return np.stack(cells, 1), pixels[:, between]


def _blank(count: int, grid: int) -> Reading:
    """Nothing read yet: no objects, no background, all clear."""
    per_cell, nothing = (count, grid**2), -1
    return Reading(
        present=np.zeros(per_cell, bool),
        shape=np.full(per_cell, nothing),
        colour=np.full(per_cell, nothing),
        size=np.full(per_cell, nothing),
        clear=np.ones(per_cell, bool),
        background=np.full(count, nothing),
        count=np.zeros(count, int),
        whole=np.ones(count, bool),
    )


def _write(
    reading: Reading, b: int, cell: int, shape: str | None, colour: str | None, size: str | None
) -> None:
    reading.present[b, cell] = True
    reading.shape[b, cell] = -1 if shape is None else FORMS.index(shape)
    reading.colour[b, cell] = -1 if colour is None else PAINTS.index(colour)
    reading.size[b, cell] = -1 if size is None else EXTENTS.index(size)


def _share(part: np.ndarray, of: np.ndarray) -> np.ndarray:
    """part / of, and 1 where there is nothing to get right."""
    return np.where(of > 0, part / np.maximum(of, 1), 1.0)


def _summarise(scores: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Means with 95 % intervals: Wilson where a score is 0 or 1, bootstrap where it is a share."""
    summary = {}
    for name, values in scores.items():
        yes_or_no = name in ("exact", "background")
        low, high = wilson(values.sum(), len(values)) if yes_or_no else bootstrap(values)
        summary[name] = {
            "mean": float(values.mean()),
            "low": low,
            "high": high,
            "count": len(values),
        }
    return summary


def _check_count(name: str, given: int, wanted: int) -> None:
    if given != wanted or not wanted:
        raise ValueError(f"{given} {name} for {wanted} scenes; give one each, and at least one")
