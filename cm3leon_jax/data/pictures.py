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
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 64_000_000

Picture = Path | bytes | np.ndarray
"""A file, a file's contents, or pixels (uint8 [Y, X, 3])."""


class BadPicture(ValueError):
    """A picture that cannot be read faithfully; the message is the reason, in one line."""


def open_picture(source: Picture, size: int, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The picture as uint8 [size, size, 3]: upright, on white, short side resized, centre cropped.

    The resize is LANCZOS, as in the input pipeline of Chameleon. The format is read from the
    contents, never from the name. Raises BadPicture for what is corrupt, truncated, empty,
    animated, larger than `max_pixels` or in another format than FORMATS.
    """
    if isinstance(source, np.ndarray):
        return _fit(Image.fromarray(source), size)
    with _reading(), _open(source) as stream, Image.open(stream, formats=FORMATS) as image:
        width, height = image.size  # from the header: nothing is decoded yet
        if width * height > max_pixels:
            raise BadPicture(f"{width} x {height} pixels: the limit is {max_pixels:,}")
        # Some phones store a second view (MPO) behind the photo; the first is the picture.
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        if frames > 1:
            raise BadPicture(f"animated or with several pages ({frames} frames)")
        return _fit(_to_rgb(ImageOps.exif_transpose(image)), size)


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


def _open(source: Path | bytes) -> BinaryIO:
    if not (source.stat().st_size if isinstance(source, Path) else source):
        raise BadPicture("empty (zero bytes)")
    return source.open("rb") if isinstance(source, Path) else io.BytesIO(source)


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
    scale = size / min(image.size)
    box = []
    for side in image.size:
        resized = max(size, round(side * scale))
        start = (resized - size) // 2
        box.append((start * side / resized, (start + size) * side / resized))
    (left, right), (top, bottom) = box
    square = image.resize((size, size), Image.Resampling.LANCZOS, (left, top, right, bottom))
    return np.array(square)
