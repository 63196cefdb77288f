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


def test_what_stands_in_front_of_a_key_is_passed_over_and_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(annotations, "CHUNK", 64)
    kept, more = [], annotations._Text.more

    def spy(text):
        more(text)
        kept.append(len(text.text))

    monkeypatch.setattr(annotations._Text, "more", spy)
    many = [{"id": n, "a": []} for n in range(1000)]
    front = {"none": [], "nothing": {}, "annotations": many, "by id": dict.fromkeys("abc" * 9, 1)}
    (tmp_path / "a.json").write_text(json.dumps(front | {"categories": [7]}))
    assert annotations.read_value(tmp_path / "a.json", "categories") == [7]
    assert [e.read() for e in annotations.list_entries(tmp_path / "a.json", "categories")] == [7]
    assert annotations.read_value(tmp_path / "a.json", "licenses") is None
    assert len(kept) > 100
    assert max(kept) < 256


def test_annotations_may_be_links_into_another_folder(coco, tmp_path):
    shutil.copytree(coco / "annotations", tmp_path / "shared" / "files")
    for name in ("folder", "file"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train2017").symlink_to(coco / "train2017")
    (tmp_path / "folder" / "annotations").symlink_to("../shared/files")
    name = "captions_train2017.json"
    (tmp_path / "file" / name).symlink_to(f"../shared/files/{name}")
    wanted = [record.id for record in read("coco_captions", coco)[0]]
    for source in ("folder", f"folder/annotations/{name}", "file"):
        assert [record.id for record in read("coco_captions", tmp_path / source)[0]] == wanted


def test_a_picture_outside_of_the_dataset_is_refused(tmp_path):
    for place in (tmp_path / "secret.jpg", tmp_path / "data" / "train" / "a.jpg"):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"x")
    (tmp_path / "data" / "train" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    for name in (str(tmp_path / "secret.jpg"), "../secret.jpg", "train/../../secret.jpg"):
        with pytest.raises(ValueError, match="leaves the folder"):
            annotations.find_image(tmp_path / "data", name)
    with pytest.raises(ValueError, match="links outside the folder"):
        annotations.find_image(tmp_path / "data", "train/link.jpg")
    found = tmp_path / "data" / "train" / "a.jpg"
    assert annotations.find_image(tmp_path / "data", "train/a.jpg") == found


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
