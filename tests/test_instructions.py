"""What becomes of records for their task: maps, boxes in the square, the page that lists all."""

import re
from pathlib import Path

import numpy as np
import pytest
from annotated import write, write_coco
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cm3leon_jax import config
from cm3leon_jax.cli import main
from cm3leon_jax.data import structures
from cm3leon_jax.data.collection import captioned, open_example
from cm3leon_jax.data.folders import to_record
from cm3leon_jax.data.instructions import DATASETS, TASKS, describe, find_task
from cm3leon_jax.data.pictures import fit_boxes, open_picture, to_png, upright_size
from cm3leon_jax.data.records import Record
from cm3leon_jax.data.structures import MAPS, add_map
from cm3leon_jax.stages import open_workdir

PAGE = (Path(__file__).parents[1] / "docs" / "instructions.md").read_text(encoding="utf-8")

# Boxes


def filled(width, height, box):
    """A white picture with a black box."""
    pixels = np.full((height, width, 3), 255, np.uint8)
    x0, y0, x1, y1 = box
    pixels[y0:y1, x0:x1] = 0
    return pixels


@given(st.integers(16, 90), st.integers(16, 90), st.data())
def test_a_box_is_where_its_object_is_in_the_opened_picture(width, height, data):
    x0, y0 = data.draw(st.integers(0, width - 6)), data.draw(st.integers(0, height - 6))
    x1, y1 = data.draw(st.integers(x0 + 6, width)), data.draw(st.integers(y0 + 6, height))
    size = 32
    shown = open_picture(filled(width, height, (x0, y0, x1, y1)), size)[..., 0] < 128
    boxes = fit_boxes([("a", (x0, y0, x1, y1))], width, height, size)
    if not boxes:  # less than a quarter of it is inside, or it is thinner than a pixel
        scale = size / min(width, height)
        assert shown.sum() <= max(0.25 * (x1 - x0) * (y1 - y0) * scale**2 + 3 * size, 2 * size)
        return
    ((_, (left, top, right, bottom)),) = boxes
    assert 0 <= left < right <= size
    assert 0 <= top < bottom <= size
    ys, xs = np.nonzero(shown)
    if len(xs):
        edges = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
        np.testing.assert_allclose((left, top, right, bottom), edges, atol=1.01)


def test_boxes_of_which_little_is_left_are_dropped():
    boxes = [("in", (4, 0, 8, 4)), ("a third", (0, 0, 3, 4)), ("a fifth", (0, 0, 2.5, 4))]
    found = fit_boxes(boxes, 8, 4, 8)  # the square is x = 2 ... 6
    assert found == (("in", (4, 0, 8, 8)), ("a third", (0, 0, 2, 8)))
    assert fit_boxes(boxes[1:], 8, 4, 2) == ()  # of the third half a pixel is left
    assert fit_boxes(boxes, 8, 8, 8) == tuple(boxes)  # a square keeps all


def test_boxes_are_those_of_the_upright_picture(tmp_path):
    turned = Image.fromarray(filled(8, 4, (0, 0, 4, 2)))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter to the right
    turned.save(tmp_path / "a.jpg", exif=exif)
    assert upright_size(tmp_path / "a.jpg") == (4, 8)
    record = Record("a", ("t", tmp_path / "a.jpg"), boxes=(("b", (0, 0, 4, 8)),))
    assert open_example(record, 4).record.boxes == (("b", (0, 0, 4, 4)),)


def test_boxes_and_captions_are_those_of_the_picture_behind_its_map():
    small, image = np.zeros((4, 4, 3), np.uint8), filled(16, 8, (4, 0, 12, 8))
    record = Record("a", ("t", small, image), boxes=(("b", (4, 0, 12, 8)),))
    example = open_example(record, 8)
    assert example.record.boxes == (("b", (0, 0, 8, 8)),)
    texts, (shown,) = captioned([example])
    assert texts == ["t"]
    np.testing.assert_array_equal(shown, example.images[1])
    apart = open_example(Record("a", (small, "t", image)), 8)  # a page: each text has its own
    np.testing.assert_array_equal(captioned([apart])[1][0], apart.images[0])


# Maps


def test_edges_are_where_the_picture_changes():
    image = np.zeros((32, 32, 3), np.uint8)
    image[:, 16:] = 255
    for kind, widths in (("edges", (1, 2)), ("scribble", (3, 4))):
        columns = MAPS[kind](image)[8:24].astype(int)
        assert set(np.unique(columns)) == {0, 255}
        where = np.flatnonzero(columns[0, :, 0])
        assert len(where) in widths
        assert 14 <= where.min() < 17
        assert (columns == columns[:1]).all()


def test_regions_have_their_mean_colour():
    image = np.zeros((32, 32, 3), np.uint8)
    image[:, :16], image[:, 16:] = (200, 30, 30), (30, 30, 200)
    np.testing.assert_allclose(
        structures.segmentation(image)[:, [2, 28]], image[:, [2, 28]], atol=9
    )
    assert len(np.unique(structures.segmentation(image).reshape(-1, 3), axis=0)) == 2


@pytest.mark.parametrize("kind", MAPS)
def test_a_map_stands_before_its_picture_where_the_record_brings_none(kind):
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    one = open_example(Record("a", ("t", image)), 8)
    for task in (kind, f"{kind}_of"):
        text, found, picture = add_map(one, task).segments
        assert text == "t"
        np.testing.assert_array_equal(found, MAPS[kind](image))
        np.testing.assert_array_equal(picture, image)
    assert add_map(one, "depth") is one
    two = open_example(Record("a", ("t", image, image)), 8)
    assert add_map(two, kind) is two


def test_a_table_names_maps_of_networks():
    entry = {"image": "a.png", "map": "depth/a.png", "text": "t"}
    record = to_record(entry, lambda name: name.encode(), "here")
    assert record.segments == ("t", b"depth/a.png", b"a.png")
    assert record.group == "a.png"  # captions of one picture stay together, with maps or without
    with pytest.raises(ValueError, match="a map without its image"):
        to_record({"map": "a.png", "text": "t"}, lambda name: name.encode(), "here")


# The page, and the command line


def test_the_page_lists_every_task_with_its_template():
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", PAGE, re.MULTILINE)
    assert dict(rows) == {name: task.template for name, task in DATASETS.items()}
    told = set(re.findall(r"`(\w+)`", PAGE))
    assert set(TASKS) - told == set()


def test_a_dataset_may_be_told_by_another_template():
    assert find_task("coco_boxes:grounded") == DATASETS["coco_boxes"]._replace(template="grounded")
    with pytest.raises(ValueError, match=r"'coco_boxes:grounde': .*did you mean grounded"):
        find_task("coco_boxes:grounde")
    with pytest.raises(ValueError, match="'edges:short': use DATASET:TEMPLATE"):
        find_task("edges:short")


@pytest.mark.parametrize("task", ["vqa2", "edges"])
def test_help_says_where_the_data_comes_from_and_its_licence(capsys, task):
    with pytest.raises(SystemExit) as end:
        main(["prepare", "--task", task, "--help"])
    assert end.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert re.sub(r"\s", "", describe(task)) in re.sub(r"\s", "", shown)
    if task == "vqa2":
        assert "CC BY 4.0" in shown


def commands():
    return [line.split() for line in PAGE.splitlines() if "prepare --check" in line]


def test_documents_of_one_task_are_not_taken_for_those_of_another(tmp_path):
    c = config.replace(config.Experiment(), {"data.task": "edges"})
    open_workdir(c, tmp_path)
    other = config.replace(c, {"data.task": "coco_captions"})
    open_workdir(other, tmp_path)  # nothing is prepared yet
    (tmp_path / "documents").mkdir()
    with pytest.raises(ValueError, match=r"made with data.task='coco_captions', now .*'edges'"):
        open_workdir(c, tmp_path)


def test_the_commands_of_the_page_check_templates_too(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_coco(tmp_path / "coco")
    line = '{"image": "1.png", "text": "a", "boxes": [["b", [0, 0, 1, 1]]]}\n'
    picture = to_png(np.zeros((8, 8, 3), np.uint8))
    bad = '{"image": "1.png", "text": "no boxes"}\n'
    write(tmp_path / "pictures", {"a.jsonl": line + bad, "1.png": picture})
    done = {}
    for command in commands():
        task = command[command.index("--task") + 1]
        assert command[0] == "cm3leon"
        assert main([*command[1:], "--max_bad_fraction=0.9"]) == 0, command
        done[task] = capsys.readouterr().out
    assert "held out, 2 bad" in done["coco_captions"]
    assert "held out, 0 bad" in done["edges"]
    assert "1 documents" in done["coco_captions:scribble"]
    assert "a.jsonl:2: record" in done["boxes"]
    assert "no boxes, which this template tells" in done["boxes"]
    unknown = "prepare --check --task vqa --data pictures --config tiny_folder --workdir x"
    assert main(unknown.split()) == 2
    assert "did you mean vqa2" in capsys.readouterr().err
