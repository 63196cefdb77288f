import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from cm3leon_jax.data.pictures import BadPicture, grid, open_picture, to_png

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encode(image: Image.Image, format: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def noise(width: int = 40, height: int = 30) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces this size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_format_is_read_from_a_file_whatever_its_name(tmp_path, format):
    path = tmp_path / "picture.jpg"
    path.write_bytes(encode(Image.new("RGB", (20, 10), RED), format))
    image = open_picture(path, 8)
    assert (image.shape, image.dtype) == ((8, 8, 3), np.uint8)
    np.testing.assert_allclose(image, np.broadcast_to(RED, (8, 8, 3)), atol=3)
    np.testing.assert_array_equal(open_picture(path.read_bytes(), 8), image)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_cut_of_a_file_is_refused(format):
    data = encode(noise(), format)
    for end in range(0, len(data) - 8, 61):
        with pytest.raises(BadPicture):
            open_picture(data[:end], 8)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", r"empty \(zero bytes\)"),
        (b"<html>404</html>", "not a picture in a known format"),
        (encode(Image.new("RGB", (8, 8)), "PPM"), "not a picture in a known format"),
        (png_header(8001, 8000), "8001 x 8000 pixels: the limit is 64,000,000"),
        (png_header(60000, 60000), "pixels"),
    ],
)
def test_what_is_no_safe_picture_is_refused(data, reason):
    with pytest.raises(BadPicture, match=reason):
        open_picture(data, 8)


def test_a_damaged_checksum_is_refused():
    data = bytearray(encode(noise(), "PNG"))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(BadPicture):
        open_picture(bytes(data), 8)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animations_and_pages_are_refused(format):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    data = encode(frames[0], format, save_all=True, append_images=frames[1:])
    with pytest.raises(BadPicture, match=r"animated or with several pages \(3 frames\)"):
        open_picture(data, 8)


def test_a_phone_photo_with_a_second_view_shows_the_first():
    views = [Image.new("RGB", (16, 16), colour) for colour in (RED, BLUE)]
    data = encode(views[0], "MPO", save_all=True, append_images=views[1:])
    np.testing.assert_allclose(open_picture(data, 4), np.broadcast_to(RED, (4, 4, 3)), atol=3)


def test_a_missing_file_is_a_bad_picture(tmp_path):
    with pytest.raises(BadPicture, match="No such file"):
        open_picture(tmp_path / "none.png", 8)


def with_palette() -> bytes:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([*RED, *GREEN, *BLUE])
    image.paste(2, (0, 0, 8, 4))
    return encode(image, "PNG", transparency=2)


def with_alpha(mode: str, colour: tuple[int, ...]) -> bytes:
    return encode(Image.new(mode, (8, 8), colour), "PNG")


@pytest.mark.parametrize(
    ("data", "top", "bottom"),
    [
        (encode(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "TIFF"), (0, 255, 255), (0, 255, 255)),
        (encode(Image.new("CMYK", (8, 8), (0, 0, 0, 255)), "JPEG"), (0, 0, 0), (0, 0, 0)),
        (encode(Image.fromarray(np.full((8, 8), 40000, np.uint16)), "PNG"), (156,) * 3, (156,) * 3),
        (encode(Image.fromarray(np.full((8, 8), 300, np.uint16)), "TIFF"), (1,) * 3, (1,) * 3),
        (
            encode(
                Image.fromarray(np.repeat(np.uint16([[9], [7000]]), 4, 0).repeat(8, 1)),
                "PNG",
                transparency=9,
            ),
            WHITE,
            (27,) * 3,
        ),
        (with_palette(), WHITE, GREEN),
        (with_alpha("RGBA", (255, 0, 0, 0)), WHITE, WHITE),
        (with_alpha("RGBA", (0, 0, 0, 51)), (204,) * 3, (204,) * 3),
        (with_alpha("LA", (0, 51)), (204,) * 3, (204,) * 3),
        (encode(Image.new("L", (8, 8), 90), "PNG"), (90,) * 3, (90,) * 3),
        (encode(Image.new("1", (8, 8), 1), "PNG"), WHITE, WHITE),
    ],
)
def test_every_mode_keeps_its_colours(data, top, bottom):
    image = open_picture(data, 8)
    assert tuple(image[0, 0]) == top
    assert tuple(image[7, 7]) == bottom


def test_pictures_of_pillow_and_arrays_are_read_as_their_files_are():
    for mode in ("LA", "RGBA", "L", "RGB", "CMYK", "P"):
        image = noise().convert(mode)
        if "A" in mode:
            image.putalpha(51)
        expected = open_picture(encode(image, "TIFF" if mode == "CMYK" else "PNG"), 8)
        np.testing.assert_array_equal(open_picture(image, 8), expected)
        if mode in ("RGBA", "L", "RGB"):
            np.testing.assert_array_equal(open_picture(np.asarray(image), 8), expected)


@pytest.mark.parametrize("pixels", [np.zeros((4, 4, 3)), np.zeros((4, 4, 2, 3), np.uint8)])
def test_arrays_that_are_no_pictures_are_refused(pixels):
    with pytest.raises(BadPicture, match=r"of shape .*: use uint8 \[Y, X, 3\]"):
        open_picture(pixels, 8)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_without_a_range_are_refused(mode):
    with pytest.raises(BadPicture, match="no known range"):
        open_picture(encode(Image.new(mode, (8, 8), 70000), "TIFF"), 8)


def test_the_camera_orientation_is_applied():
    image = Image.new("RGB", (32, 32), WHITE)
    image.paste(RED, (0, 0, 32, 16))  # red above
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees clockwise to see it upright"
    data = encode(image, "JPEG", exif=exif, quality=95, subsampling=0)
    turned = open_picture(data, 8)
    np.testing.assert_array_equal(open_picture(Image.open(io.BytesIO(data)), 8), turned)
    np.testing.assert_allclose(turned[:, 6], np.broadcast_to(RED, (8, 3)), atol=12)
    np.testing.assert_allclose(turned[:, 1], np.broadcast_to(WHITE, (8, 3)), atol=12)


@pytest.mark.parametrize("shape", [(90, 61), (61, 90), (50, 50), (33, 400), (7, 9)])
def test_fitting_equals_a_resize_of_the_short_side_and_a_centre_crop(shape):
    image, size = noise(*shape), 32
    width, height = (max(size, round(side * size / min(shape))) for side in shape)
    left, top = (width - size) // 2, (height - size) // 2
    whole = image.resize((width, height), Image.Resampling.LANCZOS)
    expected = np.asarray(whole.crop((left, top, left + size, top + size)), int)
    np.testing.assert_allclose(open_picture(np.asarray(image), size), expected, atol=1)


def test_a_picture_of_the_right_size_is_unchanged():
    image = np.asarray(noise(32, 32))
    np.testing.assert_array_equal(open_picture(image, 32), image)
    np.testing.assert_array_equal(open_picture(to_png(image), 32), image)


def test_an_endless_strip_costs_no_memory():
    assert open_picture(np.full((1, 2_000_000, 3), 9, np.uint8), 256).max() == 9


def test_no_file_stays_open(tmp_path):
    good, cut = tmp_path / "good.gif", tmp_path / "cut.png"
    good.write_bytes(encode(noise(), "GIF"))
    cut.write_bytes(encode(noise(), "PNG")[:500])
    before = len(os.listdir("/proc/self/fd"))
    errors = []
    for _ in range(5):
        open_picture(good, 8)
        with pytest.raises(BadPicture) as error:
            open_picture(cut, 8)
        errors.append(error)  # a kept traceback must not keep the file
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_grid_lays_pictures_out_by_rows_on_white():
    page = grid([np.full((4, 6, 3), i, np.uint8) for i in range(5)], columns=3, gap=2)
    assert page.shape == (4 + 2 + 4, 6 * 3 + 2 * 2, 3)
    assert [page[0, 0, 0], page[0, 8, 0], page[6, 0, 0], page[6, 8, 0]] == [0, 1, 3, 4]
    assert (page[4:6] == 255).all()
    assert (page[6:, 16:] == 255).all()
    with pytest.raises(ValueError, match="0 images"):
        grid([], 3)
