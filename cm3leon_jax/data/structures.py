"""Structure maps that need no network: edges, regions and scribbles of a picture, by scikit-image.

The maps of the other kinds of `wording.STRUCTURES` come from networks, and are read from files.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cm3leon_jax.data.collection import Example
from cm3leon_jax.data.pictures import BadPicture

Map = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


def edges(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Canny edges, white on black: [Y X 3] -> [Y X 3].

    Thresholds of 0.1 and 0.2 of white on luma smoothed by 1 pixel, scikit-image's own.
    """
    return _paint(_canny(image, 1.0))


def scribble(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The coarse edges in thick strokes, white on black: [Y X 3] -> [Y X 3].

    The paper synthesised scribbles and does not say how: here edges of the picture smoothed by
    1/128 of its side, short ones dropped, widened to about 1/64 of the side.
    """
    from skimage.morphology import dilation, disk, remove_small_objects

    side = min(image.shape[:2])
    lines = _canny(image, max(1.0, side / 128))
    long = remove_small_objects(lines, max_size=side // 16, connectivity=2)
    return _paint(dilation(long, disk(max(1, side // 128))))


def segmentation(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Regions of similar colour, each in its mean colour: [Y X 3] -> [Y X 3].

    By the graph of Felzenszwalb and Huttenlocher; the paper's maps show classes, found by a
    network. A picture of one colour is one region.
    """
    from skimage.segmentation import felzenszwalb

    side = min(image.shape[:2])
    labels = felzenszwalb(image, scale=200, sigma=0.8, min_size=max(4, side * side // 500))
    flat, pixels = labels.ravel(), image.reshape(-1, 3)
    counts = np.bincount(flat)
    means = [np.bincount(flat, pixels[:, c]) / counts for c in range(3)]
    return np.stack(means, -1).round().astype(np.uint8)[labels]


MAPS: dict[str, Map] = {"edges": edges, "segmentation": segmentation, "scribble": scribble}


def add_map(example: Example, task: str) -> Example:
    """The example with the map that a task of MAPS (edges, edges_of, ...) shows before the picture.

    As it is for other tasks, and where the record brings a map. Raises BadPicture where there is
    no picture, ValueError where scikit-image is missing.
    """
    kind = task.removesuffix("_of")
    if kind not in MAPS or len(example.images) > 1:
        return example
    if not example.images:
        raise BadPicture("no picture to make a map of")
    try:
        import skimage  # noqa: F401  # its parts are imported where they are used
    except ImportError:
        rule = "pip install 'cm3leon_jax[data]', or give records their maps"
        raise ValueError(f"data.task={task!r} needs scikit-image: {rule}") from None
    places = [i for i, part in enumerate(example.segments) if not isinstance(part, str)]
    map_image = MAPS[kind](example.images[0])
    before, behind = example.segments[: places[0]], example.segments[places[0] :]
    return replace(example, segments=(*before, map_image, *behind))


def _canny(image: NDArray[np.uint8], sigma: float) -> NDArray[np.bool_]:
    from skimage.feature import canny

    luma = image @ np.array([0.299, 0.587, 0.114]) / 255  # as PIL's "L"
    return canny(luma, sigma, low_threshold=0.1, high_threshold=0.2)


def _paint(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.repeat(mask[..., None], 3, axis=-1).astype(np.uint8) * 255
