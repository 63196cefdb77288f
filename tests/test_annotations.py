"""The stream of an annotation file: any JSON, in pieces of any size, and whatever stands in it."""

import contextlib
import json
import os
import shutil

import pytest
from annotated import read, write_coco

from cm3leon_jax.data import annotations


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("coco"))


@pytest.mark.parametrize("size", [1, 7, 2**20])
def test_entries_are_those_of_json_however_much_is_read_at_once(tmp_path, monkeypatch, size):
    monkeypatch.setattr(annotations, "CHUNK", size)
    content = {"info": {"a": [1, {"images": 3}]}, "images": [12345, 'é \\"', {"x": [1.5e3]}, None]}
    for text in (json.dumps(content), json.dumps(content, indent=2, ensure_ascii=False)):
        (tmp_path / "a.json").write_text("\ufeff" + text, encoding="utf-8")
        entries = list(annotations.list_entries(tmp_path / "a.json", "images"))
        assert [entry.read() for entry in entries] == content["images"]
        for i, entry in enumerate(entries):
            rest = annotations.list_entries(tmp_path / "a.json", "images", entry.place)
            assert [e.read() for e in rest] == content["images"][i:]
        assert annotations.read_value(tmp_path / "a.json", "info") == content["info"]
        outer = list(annotations.list_entries(tmp_path / "a.json"))
        assert {entry.key: entry.read() for entry in outer} == content


def test_a_file_that_ends_too_early_is_one_clear_line(coco, tmp_path):
    whole = (coco / "annotations" / "captions_train2017.json").read_bytes()
    for cut in (len(whole) // 3, len(whole) - 30):
        (tmp_path / "captions_train2017.json").write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"captions_train2017.json: broken JSON at byte \d+"):
            read("coco_captions", tmp_path)
    (tmp_path / "captions_train2017.json").write_text('{"images": []}')
    with pytest.raises(ValueError, match="no 'annotations': this is not the file it is taken for"):
        read("coco_captions", tmp_path)


JUNK = (None, True, -1, 2**70, 1.5, "", "\ud83d", "x", [], [0], {}, {"id": 9})


def list_nodes(value, path=()):
    """The paths of all values inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in inside:
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from list_nodes(inner, (*path, key))


@pytest.mark.parametrize("name", ["captions", "instances"])
def test_whatever_stands_in_a_file_is_listed_or_one_clear_error(coco, tmp_path, name):
    for folder in ("annotations", "train2017"):
        shutil.copytree(coco / folder, tmp_path / folder)
    file = tmp_path / "annotations" / f"{name}_train2017.json"
    whole, task = file.read_text(), {"captions": "coco_captions", "instances": "coco_boxes"}[name]
    listed = 0
    for number, (*path, last) in enumerate(list_nodes(json.loads(whole))):
        content = node = json.loads(whole)
        for key in path:
            node = node[key]
        node[last] = JUNK[number % len(JUNK)]
        file.write_text(json.dumps(content))
        os.utime(file, ns=(number, number))  # a changed file, however fast it was written
        with contextlib.suppress(ValueError):
            listed += len(read(task, tmp_path)[1])
    assert listed > 50
