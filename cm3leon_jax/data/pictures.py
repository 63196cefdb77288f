"""Opens pictures from anywhere without being harmed by them, and lays them out in grids.

What a picture shows is kept (CMYK, 16 bits, palettes and transparency are converted by value); what
cannot be read faithfully raises `BadPicture` instead of giving grey or half an image.
"""

import contextlib
import io
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from cm3leon_jax.data.records import Box

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 64_000_000
LEAST = 0.25  # share of a box inside the square, below which it is left out

Picture = Path | bytes | np.ndarray | Image.Image
"""A file, a file's contents, pixels (uint8 [Y, X, 3], also grey or with alpha), or Pillow's."""


class BadPicture(ValueError):
    """A picture that cannot be read faithfully; the message is the reason, in one line."""


def open_picture(source: Picture, size: int, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The picture as uint8 [size, size, 3]: upright, on white, short side resized, centre cropped.

    The resize is LANCZOS, as in the input pipeline of Chameleon. The format is read from the
    contents, never from the name. Raises BadPicture for what is corrupt, truncated, empty,
    animated, larger than `max_pixels` or in another format than FORMATS.
    """
    with _upright(source, max_pixels) as image:
        return _fit(image, size)


def open_whole(source: Picture, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The picture as uint8 [Y, X, 3], as `open_picture` reads it, but of its own size and shape."""
    with _upright(source, max_pixels) as image:
        return np.array(image)


def upright_size(source: Picture) -> tuple[int, int]:
    """Width and height of a picture as it is looked at, from its header. Raises BadPicture."""
    with _reading(), _open(source) as image:
        width, height = image.size
        is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        return (height, width) if is_turned else (width, height)


def fit_boxes(boxes: Sequence[Box], width: int, height: int, size: int) -> tuple[Box, ...]:
    """Boxes in pixels of a picture of `width` x `height`, in pixels of its `open_picture` square.

    They are cut at the edges of the square. Left out are those of which less than LEAST of the
    area is inside, and those that are then less than a pixel wide or high.
    """
    (across, left), (down, top) = (_place(s, min(width, height), size) for s in (width, height))
    found = []
    for label, (x0, y0, x1, y1) in boxes:
        xs = [x * across / width - left for x in (x0, x1)]
        ys = [y * down / height - top for y in (y0, y1)]
        whole = (xs[1] - xs[0]) * (ys[1] - ys[0])
        (a, b), (c, d) = ([min(max(v, 0.0), float(size)) for v in vs] for vs in (xs, ys))
        if b - a >= 1 and d - c >= 1 and (b - a) * (d - c) >= LEAST * whole:
            found.append((label, (a, c, b, d)))
    return tuple(found)


def grid(images: Sequence[np.ndarray], columns: int, gap: int = 2) -> np.ndarray:
    """Equal images [Y, X, 3] uint8, row by row, as one picture with white gaps between them."""
    if not len(images) or columns < 1:
        raise ValueError(f"{len(images)} images in {columns} columns: give one or more of each")
    y, x, _ = images[0].shape
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    page = np.full((rows * (y + gap) - gap, columns * (x + gap) - gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (y + gap), i % columns * (x + gap)
        page[top : top + y, left : left + x] = image
    return page


def to_png(image: np.ndarray) -> bytes:
    """The pixels [Y, X, 3] uint8 as the contents of a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


@contextlib.contextmanager
def _upright(source: Picture, max_pixels: int) -> Iterator[Image.Image]:
    """RGB, upright, on white."""
    with _reading(), _open(source) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise BadPicture(f"{width} x {height} pixels: the limit is {max_pixels:,}")
        # Some phones store a second view (MPO) behind the photo; the first is the picture.
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        if frames > 1:
            raise BadPicture(f"animated or with several pages ({frames} frames)")
        yield _to_rgb(ImageOps.exif_transpose(image))


@contextlib.contextmanager
def _open(source: Picture) -> Iterator[Image.Image]:
    """Of a file the header is read and nothing decoded."""
    if isinstance(source, Image.Image):
        yield source
    elif isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or (source.ndim != 2 and source.shape[2:] not in ((3,), (4,))):
            raise BadPicture(f"{source.dtype} of shape {source.shape}: use uint8 [Y, X, 3]")
        yield Image.fromarray(source)
    elif not (source.stat().st_size if isinstance(source, Path) else source):
        raise BadPicture("empty (zero bytes)")
    else:
        with (
            source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as stream,
            Image.open(stream, formats=FORMATS) as image,
        ):
            yield image


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Turns whatever a decoder throws at a hostile file into BadPicture."""
    try:
        with warnings.catch_warnings():  # our limit stands before Pillow's warning
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    except BadPicture:
        raise
    except Image.DecompressionBombError as error:
        raise BadPicture(f"too many pixels: {error}") from None
    except UnidentifiedImageError:
        raise BadPicture(f"not a picture in a known format ({', '.join(FORMATS)})") from None
    except OSError as error:
        raise BadPicture(f"cannot be read: {error.strerror or error}") from None
    except Exception as error:  # decoders raise SyntaxError, struct.error, IndexError and more
        raise BadPicture(f"corrupt: {type(error).__name__}: {error}") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB; transparency is laid on white."""
    if image.mode.startswith("I;16"):
        image = _to_8_bits(image)
    if image.mode in ("I", "F"):
        raise BadPicture("32-bit pixels have no known range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """16-bit grey by its high byte; Pillow's own conversion cuts everything above 255 to white."""
    pixels = np.asarray(image)
    grey = (pixels >> 8).astype(np.uint8)
    clear = image.info.get("transparency")
    if clear is None:
        return Image.fromarray(grey)
    return Image.fromarray(np.stack([grey, np.where(pixels == clear, 0, 255).astype(np.uint8)], -1))


def _fit(image: Image.Image, size: int) -> np.ndarray:
    """The centre square of the picture resized so that its short side is `size`.

    Only that square is computed: a picture of 1 x 10,000,000 pixels costs no memory.
    """
    box = []
    for side in image.size:
        resized, start = _place(side, min(image.size), size)
        box.append((start * side / resized, (start + size) * side / resized))
    (left, right), (top, bottom) = box
    square = image.resize((size, size), Image.Resampling.LANCZOS, (left, top, right, bottom))
    return np.array(square)


def _place(side: int, short: int, size: int) -> tuple[int, int]:
    """The length of a resized side of a picture, and where on it the square starts."""
    resized = max(size, round(side * (size / short)))
    return resized, (resized - size) // 2
