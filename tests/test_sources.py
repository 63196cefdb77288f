import io
import json
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from cm3leon_jax.data.pictures import BadPicture, grid, open_picture, to_png
from cm3leon_jax.data.sources import Record, Skipped, is_held_out, read_folder

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


# Pictures


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


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_without_a_range_are_refused(mode):
    with pytest.raises(BadPicture, match="no known range"):
        open_picture(encode(Image.new(mode, (8, 8), 70000), "TIFF"), 8)


def test_the_camera_orientation_is_applied():
    image = Image.new("RGB", (32, 32), WHITE)
    image.paste(RED, (0, 0, 32, 16))  # red above
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees clockwise to see it upright"
    turned = open_picture(encode(image, "JPEG", exif=exif, quality=95, subsampling=0), 8)
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


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files in /proc")
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


# Records


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": ""}, "id is empty"),
        ({"id": "\ud800"}, "surrogate"),
        ({"id": 7}, "id=7 is not text"),
        ({"segments": ()}, r"segments=\(\)"),
        ({"segments": ["x"]}, "tuple"),
        ({"segments": (" ",)}, r"segments\[0\] is empty"),
        ({"segments": (3,)}, "is a int"),
        ({"segments": (np.zeros((4, 4, 3)),)}, r"float64 \[4, 4, 3\]: an image array is uint8"),
        ({"segments": (np.zeros((0, 4, 3), np.uint8),)}, r"\[0, 4, 3\]"),
        ({"boxes": (("cat", (0, 0, 0, 5)),)}, r"boxes\[0\]"),
        ({"boxes": (("cat", (0, 0, float("inf"), 5)),)}, "0 <= x0 < x1"),
        ({"boxes": (("", (0, 0, 1, 5)),)}, "label"),
        ({"boxes": (("cat", (0, 0, 5)),)}, "x0, y0, x1, y1"),
        ({"question": "how many?"}, "come together"),
        ({"instruction": " "}, "instruction is empty"),
        ({"license": None}, "license=None"),
    ],
)
def test_a_wrong_record_is_refused_in_one_line(change, message):
    with pytest.raises(ValueError, match=message) as error:
        Record(**({"id": "a", "segments": ("a cat",)} | change))
    assert "\n" not in str(error.value)


def test_the_held_out_split_is_stable_and_has_its_size():
    ids = [f"record-{i}" for i in range(20_000)]
    held = {id for id in ids if is_held_out(id)}
    assert 0.045 < len(held) / len(ids) < 0.055
    assert held < {id for id in ids if is_held_out(id, 0.1)}  # a larger share only adds
    assert [id for id in ids[:60] if id in held] == [f"record-{i}" for i in (10, 18, 29, 59)]
    assert not any(is_held_out(id, 0) for id in ids[:99])
    assert all(is_held_out(id, 1) for id in ids[:99])
    with pytest.raises(ValueError, match="fraction=5"):
        is_held_out("a", 5)


# Folders


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "data"
    (root / "cats").mkdir(parents=True)
    for name in ("1.png", "2.png"):
        (root / "cats" / name).write_bytes(encode(noise(), "PNG"))
    return root


def write_lines(root, *entries, name="captions.jsonl"):
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    (root / name).write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogateescape")


def read(root, max_bad_fraction=1.0):
    skipped = Skipped()
    return list(read_folder(root, skipped, max_bad_fraction)), skipped


def test_both_forms_of_a_line_give_a_record(folder):
    write_lines(
        folder,
        {"image": "cats/1.png", "caption": " a cat\n", "license": "CC0", "source_url": "http://a"},
        "",
        {
            "id": "two",
            "segments": [{"text": "before"}, {"image": "cats/2.png"}, {"text": "after"}],
            "boxes": [["cat", [1, 2, 3.5, 4]]],
            "question": "what?",
            "answer": "a cat",
        },
        {
            "segments": [{"image": "cats/1.png"}, {"image": "cats/2.png"}],
            "instruction": "swap the cat",
        },
    )
    (one, two, three), skipped = read(folder)
    assert skipped.reasons == []
    assert sorted(map(str, one.segments)) == sorted([str(folder / "cats/1.png"), "a cat"])
    assert (one.license, one.source_url, one.origin) == ("CC0", "http://a", "captions.jsonl:1")
    assert two.segments == ("before", folder / "cats/2.png", "after")
    assert (two.id, two.boxes, two.origin) == (
        "two",
        (("cat", (1, 2, 3.5, 4)),),
        "captions.jsonl:3",
    )
    assert (two.question, two.answer) == ("what?", "a cat")
    assert three.instruction == "swap the cat"
    assert [record.id for record in read(folder / "captions.jsonl")[0]] == [one.id, "two", three.id]


def test_the_short_form_puts_the_text_first(folder):
    write_lines(folder, {"image": "cats/1.png", "text": "a cat"})
    assert read(folder)[0][0].segments == ("a cat", folder / "cats/1.png")


def test_an_unnamed_record_keeps_its_id_when_lines_move(folder):
    lines = [{"text": f"text {i}"} for i in range(5)]
    write_lines(folder, *lines)
    ids = {record.segments: record.id for record in read(folder)[0]}
    write_lines(folder, *reversed(lines))
    assert {record.segments: record.id for record in read(folder)[0]} == ids
    assert len(set(ids.values())) == 5


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ('{"text": "a', "broken JSON"),
        ("[" * 100_000, "broken JSON"),
        ('{"text": "caf\udce9"}', "not UTF-8"),
        ("[1]", "a record is a JSON object, not list"),
        ({}, "no content"),
        ({"text": "  "}, "text is empty"),
        ({"text": 5}, "text=5 is not text"),
        ({"text": None}, "text=None is not text"),
        ({"text": "\ud800"}, "surrogate"),
        ({"id": "", "text": "a"}, "id is empty"),
        ({"id": None, "text": "a"}, "id=None is not text"),
        ({"text": "a", "caption": "b"}, "one field"),
        ({"text": "a", "segments": [{"text": "b"}]}, "exclude one another"),
        ({"segments": []}, "segments is empty or not a list"),
        ({"segments": {"text": "b"}}, "segments is empty or not a list"),
        ({"segments": ["b"]}, "segment 'b'"),
        ({"segments": [{"text": "b", "image": "cats/1.png"}]}, "segment"),
        ({"image": "cats/1.png"}, "no caption"),
        ({"image": 5, "text": "a"}, "segment {'image': 5}"),
        ({"image": "cats/9.png", "text": "a"}, "image 'cats/9.png' is missing"),
        ({"image": "cats", "text": "a"}, "not a readable file"),
        ({"image": "a\0b", "text": "a"}, "is missing"),
        ({"image": "a" * 5000, "text": "a"}, "is missing"),
        ({"image": "/etc/hostname", "text": "a"}, "leaves the folder"),
        ({"image": "cats/../../x.png", "text": "a"}, "leaves the folder"),
        ({"text": "a", "boxs": []}, "unknown field 'boxs': did you mean 'boxes'?"),
        ({"text": "a", "zzz": []}, "unknown field 'zzz': known are id, segments"),
        ({"text": "a", "boxes": 5}, "boxes=5 is not a list"),
        ({"text": "a", "boxes": [["cat", [0, 0, 1]]]}, "boxes[0]"),
        ({"text": "a", "boxes": [["cat", [0, 0, 1, 10**400]], 7]}, "boxes[1]"),
        ({"text": "a", "question": "b"}, "come together"),
        ({"text": "a", "license": 5}, "license=5"),
        ({"id": "good", "text": "b"}, "duplicate id 'good'"),
    ],
)
def test_a_bad_line_is_skipped_and_listed_with_its_number(folder, entry, reason):
    write_lines(folder, {"id": "good", "text": "a"}, entry, {"id": "last", "text": "z"})
    records, skipped = read(folder)
    assert [record.id for record in records] == ["good", "last"]
    assert skipped.seen == 3
    (line,) = skipped.reasons
    assert line.startswith("captions.jsonl:2: ")
    assert reason in line
    assert "\n" not in line


def test_links_out_of_the_folder_and_empty_files_are_skipped(folder, tmp_path):
    (tmp_path / "secret.png").write_bytes(encode(noise(), "PNG"))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "inside.png").symlink_to(folder / "cats/1.png")
    (folder / "zero.png").touch()
    names = ["link.png", "loop.png", "zero.png", "inside.png"]
    write_lines(folder, *({"image": name, "text": name} for name in names))
    records, skipped = read(folder)
    assert [record.segments[0] for record in records] == ["inside.png"]
    for line, reason in zip(
        skipped.reasons, ["links outside", "missing", "zero bytes"], strict=True
    ):
        assert reason in line


def test_a_folder_without_jsonl_gives_pictures_with_captions(folder):
    (folder / "cats/1.txt").write_text("\ufeffa cat\n", encoding="utf-8")
    (folder / "cats/2.txt").write_bytes(b"\xff")
    (folder / "b.jpeg").write_bytes(encode(noise(), "JPEG"))
    (folder / "c.JPG").write_bytes(encode(noise(), "JPEG"))
    (folder / "c.txt").write_text("a dog")
    (folder / "d.txt").write_text("alone")
    (folder / "e.png").touch()
    (folder / "e.txt").write_text("no bytes")
    (folder / "._c.jpg").write_bytes(b"left by another system")
    records, skipped = read(folder)
    assert [(record.id, record.segments) for record in records] == [
        ("c", ("a dog", folder / "c.JPG")),
        ("cats/1", ("a cat", folder / "cats/1.png")),
    ]
    expected = {
        "b.jpeg": "no caption beside it: write b.txt",
        "e.png": "zero bytes",
        "d.txt": "no picture beside it",
        "cats/2.png": "2.txt is not UTF-8",
    }
    assert len(skipped.reasons) == len(expected)
    for line, (where, reason) in zip(skipped.reasons, expected.items()):
        assert line.startswith(f"{where}: ")
        assert reason in line


def test_too_many_bad_records_stop_the_run_with_one_message(folder):
    write_lines(folder, *({"text": f"{i}"} for i in range(97)), "{", "{", "{")
    with pytest.raises(ValueError, match="bad") as error:
        read(folder, max_bad_fraction=0.01)
    message = str(error.value)
    assert message.startswith("3 of 100 records are bad (3.0%, limit 1.0%): captions.jsonl:98: ")
    assert message.endswith("raise --max_bad_fraction")
    assert len(read(folder, max_bad_fraction=0.03)[0]) == 97


def test_a_hopeless_folder_stops_early_and_an_unlucky_start_does_not(folder):
    write_lines(folder, *["{"] * 5000)
    skipped = Skipped()
    with pytest.raises(ValueError, match="100 of 100 records are bad"):
        list(read_folder(folder, skipped))
    write_lines(folder, "{", "{", "{", "{", *({"text": f"{i}"} for i in range(996)))
    assert len(read(folder, max_bad_fraction=0.01)[0]) == 996


def test_reading_is_streaming(folder):
    write_lines(folder, {"text": "first"}, *["{"] * 10)
    skipped = Skipped()
    assert next(read_folder(folder, skipped)).segments == ("first",)
    assert skipped.seen == 1


def test_nothing_to_read_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no records"):
        read(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read(tmp_path / "none")


def test_the_list_of_skipped_records_is_written_whole(tmp_path):
    skipped = Skipped(seen=2)
    skipped.add("a.jsonl:1", "no content")
    skipped.add("a.jsonl:2", "text is empty")
    skipped.write(tmp_path / "skipped.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["skipped.txt"]
    assert (tmp_path / "skipped.txt").read_text() == (
        "a.jsonl:1: no content\na.jsonl:2: text is empty\n"
    )
