"""How large pictures become the small, damaged ones that the upscaler learns to enlarge.

The chain of Real-ESRGAN (arXiv 2107.10833, section 3; ranges from section 4.1): blur, resize,
noise, JPEG, all of it a second time in `second_order`, and a sinc filter that rings as sharpened
pictures do. Differences: every step gives 8 bits, as a saved picture has; Pillow resizes, which
antialiases; Poisson noise has 256 levels. NumPy and Pillow on the host; the generator that is given
decides everything.
"""

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.special import j1

Pixels = NDArray[np.uint8]  # [Y X 3]
Range = tuple[float, float]

FILTERS = (Image.Resampling.BOX, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
SIDES = range(7, 22, 2)  # of blur kernels, in pixels
SINC = 0.1  # share of blurs that are sinc filters
ANISOTROPIC = 0.35
KINDS = {"gaussian": 0.7, "generalized": 0.15, "plateau": 0.15}
GAUSSIAN, GREY = 0.5, 0.4  # shares: of Gaussian noise, else Poisson; of noise equal in all colours
QUALITY = (30, 95)  # of JPEG
LAST_SINC = 0.8


class Order(NamedTuple):
    """The ranges of one pass through the chain."""

    blurred: float  # share of the pictures
    sigma: Range  # of the blur, in pixels
    larger: float  # shares of those resized up and down; the others keep their size
    smaller: float
    factor: Range
    gaussian: Range  # standard deviation of noise, in grey levels
    poisson: Range  # times the noise of a light of 255 photons for white


ORDERS = (
    Order(1.0, (0.2, 3.0), 0.2, 0.7, (0.15, 1.5), (1.0, 30.0), (0.05, 3.0)),
    Order(0.8, (0.2, 1.5), 0.3, 0.4, (0.3, 1.2), (1.0, 25.0), (0.05, 2.5)),
)


def shrink(picture: Pixels, scale: int) -> Pixels:
    """[Y X 3] -> [Y/scale X/scale 3] by an antialiased bicubic filter, and nothing else."""
    size = picture.shape[1] // scale, picture.shape[0] // scale
    return np.array(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


def degrade(picture: Pixels, scale: int, orders: int, rng: np.random.Generator) -> Pixels:
    """[Y X 3] -> [Y/scale X/scale 3] by one or two passes through the chain."""
    y, x, _ = picture.shape
    small = x // scale, y // scale
    for number, order in enumerate(ORDERS[:orders], 1):
        if rng.random() < order.blurred:
            picture = _filter(picture, _draw_kernel(order, rng))
        at_first = x / (1 if number == 1 else scale), y / (1 if number == 1 else scale)
        picture = _resize(picture, _draw_size(at_first, order, rng), rng)
        picture = _add_noise(picture, order, rng)
        if number < orders:
            picture = _compress(picture, rng)
    ringing = _sinc(rng.uniform(np.pi / 3, np.pi), int(rng.choice(SIDES)))
    rings, compress_first = rng.random() < LAST_SINC, rng.random() < 0.5
    if compress_first:
        picture = _compress(picture, rng)
    picture = _resize(picture, small, rng)
    if rings and orders > 1:
        picture = _filter(picture, ringing)
    return picture if compress_first else _compress(picture, rng)


def _draw_size(size: Sequence[float], order: Order, rng: np.random.Generator) -> tuple[int, int]:
    low, high = order.factor
    way = rng.random()
    factor = 1.0
    if way < order.larger:
        factor = rng.uniform(1, high)
    elif way < order.larger + order.smaller:
        factor = rng.uniform(low, 1)
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _resize(picture: Pixels, size: tuple[int, int], rng: np.random.Generator) -> Pixels:
    """To (width, height) by any of the FILTERS."""
    return np.array(Image.fromarray(picture).resize(size, FILTERS[rng.integers(len(FILTERS))]))


def _draw_kernel(order: Order, rng: np.random.Generator) -> NDArray[np.float64]:
    """A blur [K K] whose sum is 1."""
    side = int(rng.choice(SIDES))
    if rng.random() < SINC:
        return _sinc(rng.uniform(np.pi / 3 if side < 13 else np.pi / 5, np.pi), side)
    kind = rng.choice([*KINDS], p=[*KINDS.values()])
    widths = np.full(2, rng.uniform(*order.sigma))
    angle = 0.0
    if rng.random() < ANISOTROPIC:
        widths[1], angle = rng.uniform(*order.sigma), rng.uniform(-np.pi, np.pi)
    offset = np.arange(side) - side // 2
    down, across = np.meshgrid(offset, offset, indexing="ij")
    along = across * np.cos(angle) + down * np.sin(angle)
    athwart = down * np.cos(angle) - across * np.sin(angle)
    distance = (along / widths[0]) ** 2 + (athwart / widths[1]) ** 2
    if kind == "plateau":
        kernel = 1 / (1 + distance ** rng.uniform(1, 2))
    else:
        kernel = np.exp(-0.5 * distance ** (rng.uniform(0.5, 4) if kind == "generalized" else 1.0))
    return kernel / kernel.sum()


def _sinc(cutoff: float, side: int) -> NDArray[np.float64]:
    """The ideal low-pass filter of a circle, cut to [side side]: its sharp end makes edges ring."""
    offset = np.arange(side) - side // 2
    radius = np.maximum(np.hypot(*np.meshgrid(offset, offset)), 1e-9)
    kernel = cutoff * j1(cutoff * radius) / (2 * np.pi * radius)
    return kernel / kernel.sum()


def _filter(picture: Pixels, kernel: NDArray[np.float64]) -> Pixels:
    """The convolution, with the picture reflected at its edges; by FFT, as kernels are large."""
    (y, x, _), half = picture.shape, len(kernel) // 2
    wide = np.pad(picture, ((half, half), (half, half), (0, 0)), "reflect").astype(np.float64)
    size = wide.shape[:2]
    spectrum = np.fft.rfft2(wide, axes=(0, 1)) * np.fft.rfft2(kernel, size)[..., None]
    found = np.fft.irfft2(spectrum, size, axes=(0, 1))[2 * half :, 2 * half :]
    return _to_bytes(found[:y, :x])


def _add_noise(picture: Pixels, order: Order, rng: np.random.Generator) -> Pixels:
    is_grey = rng.random() < GREY
    shape = (*picture.shape[:2], 1 if is_grey else 3)
    if rng.random() < GAUSSIAN:
        noise = rng.normal(0, rng.uniform(*order.gaussian), shape)
    else:
        light = picture.mean(axis=2, keepdims=True) if is_grey else picture.astype(np.float64)
        noise = (rng.poisson(light) - light) * rng.uniform(*order.poisson)
    return _to_bytes(picture + noise)


def _compress(picture: Pixels, rng: np.random.Generator) -> Pixels:
    stream = io.BytesIO()
    Image.fromarray(picture).save(
        stream, "JPEG", quality=int(rng.integers(*QUALITY, endpoint=True))
    )
    return np.array(Image.open(stream))


def _to_bytes(picture: NDArray[np.floating]) -> Pixels:
    return np.rint(picture.clip(0, 255)).astype(np.uint8)
