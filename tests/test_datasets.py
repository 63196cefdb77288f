import re
import sys

import numpy as np
import pytest

from cm3leon_jax import config
from cm3leon_jax.data import datasets, sources
from cm3leon_jax.data.pictures import open_picture
from cm3leon_jax.data.records import Skipped

tfds = pytest.importorskip("tensorflow_datasets")

COUNT = 7


def read(source, **values):
    """All records of a source, part after part, and what was skipped."""
    data = config.Data(source=source, max_bad_fraction=0.999, **values)
    skipped = Skipped()
    parts = sources.plan(data, 32)
    records = [record for part in parts for record in sources.read(part, data, 32, skipped)]
    return records, skipped


def make_examples():
    """Pictures of unlike sizes with none to two captions."""
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        captions = [f" caption  {i} {j}\n" for j in range(i % 3)]
        yield {
            "image": rng.integers(0, 256, (4 + i, 5, 3)).astype(np.uint8),
            "grey": rng.integers(0, 256, (4, 5, 1)).astype(np.uint8),
            "clear": np.zeros((4, 5, 4), np.uint8),
            "captions": {"text": captions, "id": list(range(i % 3))},
            "label": i % 2,
            "image/id": 100 + i,
            "rights": "CC0" if i % 2 else "",
        }


@pytest.fixture(scope="module", params=["array_record", "tfrecord"])
def stored(request, tmp_path_factory):
    """The name of a dataset on disk, in both of the formats that are read differently."""
    folder = tmp_path_factory.mktemp("tfds")
    features = tfds.features
    name = f"cats_{request.param}"
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version="1.0.0",
        features=features.FeaturesDict(
            {
                "image": features.Image(shape=(None, None, 3)),
                "grey": features.Image(shape=(None, None, 1)),
                "clear": features.Image(shape=(None, None, 4)),
                "captions": features.Sequence({"text": np.str_, "id": np.int64}),
                "label": features.ClassLabel(names=["tabby_cat", "lion"]),
                "image/id": np.int64,
                "rights": features.Text(),
            }
        ),
        split_datasets={"train": list(enumerate(make_examples()))},
        homepage="http://cats",
        data_dir=folder,
        file_format=request.param,
        disable_shuffling=True,
    )
    tfds.core.add_data_dir(folder)
    return name


FIELDS = "image=image,text=captions/text,id=image/id"


@pytest.mark.parametrize("length", [1, 3, 100])
def test_every_caption_is_a_record_of_its_picture_s_group(stored, length):
    records, skipped = read(f"tfds:{stored}", fields=FIELDS, part=length)
    examples = list(make_examples())
    expected = [
        (f"{stored}/train/{100 + i}", f"caption {i} {j}", examples[i]["image"].tolist())
        for i in range(COUNT)
        for j in range(i % 3)
    ]
    found = [(record.group, record.segments[0], record.segments[1].tolist()) for record in records]
    assert found == expected
    ids = [record.id for record in records]
    assert ids[:3] == [f"{stored}/train/{i}" for i in ("101", "102/0", "102/1")]
    assert len(set(ids)) == len(ids)
    assert {(record.license, record.source_url) for record in records} == {("", "http://cats")}
    assert records[2].origin == f"{stored}/train[2]/1"
    assert skipped.reasons == [f"{stored}/train[{i}]: no caption" for i in (0, 3, 6)]


def test_a_label_is_its_name_in_words(stored):
    records, _ = read(f"tfds:{stored}:train", fields="image=image, text=label, license=rights")
    assert [record.segments[0] for record in records[:3]] == ["tabby cat", "lion", "tabby cat"]
    assert [record.license for record in records[:2]] == ["", "CC0"]
    assert records[4].id == f"{stored}/train/4"


def test_count_takes_the_first_examples(stored):
    records, _ = read(f"tfds:{stored}", fields="image=image,text=label", count=4, part=3)
    assert [record.id for record in records] == [f"{stored}/train/{i}" for i in range(4)]


def test_grey_and_clear_pictures_can_be_opened(stored):
    grey, _ = read(f"tfds:{stored}", fields="image=grey,text=label")
    pixels = next(make_examples())["grey"]
    assert np.array_equal(grey[0].segments[1], np.repeat(pixels, 3, -1))
    clear, _ = read(f"tfds:{stored}", fields="image=clear,text=label")
    assert (open_picture(clear[0].segments[1], 4) == 255).all()  # laid on white


@pytest.mark.parametrize(
    ("split", "fields", "message"),
    [
        (":test", FIELDS, "no split 'test'; use one of train"),
        ("", "", "data.fields='': give image=FEATURE,text=FEATURE"),
        ("", "image=image", "data.fields='image=image': give image="),
        ("", "image=image,text=label,boxes=b", "give image=FEATURE"),
        ("", "image=image,text", "give image=FEATURE"),
        ("", "image=image,text=label,text=label", "give image=FEATURE"),
        ("", "image=image,text=captions/txt", "no feature 'captions/txt'; cats_"),
        ("", "image=image,text=label/x", "no feature 'label/x'"),
    ],
)
def test_a_wrong_split_or_map_is_named(stored, split, fields, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read(f"tfds:{stored}{split}", fields=fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tfds:", "give tfds:NAME or tfds:NAME:SPLIT"),
        ("tfds:cats:train[:10]", "give tfds:NAME or tfds:NAME:SPLIT"),
        ("tfds:coco_caption", "no such dataset; did you mean tfds:coco_captions?"),
        ("tfds:coco_captions:9.9.9", "cannot be loaded at version 9.9.9"),
        ("tfds:coco_captions", "not on this machine: run `tfds build coco_captions --file_format"),
    ],
)
def test_a_dataset_that_is_not_there_is_named(source, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read(source)
    assert "\n" not in str(error.value)


def test_without_tfds_the_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ValueError, match=r"needs TFDS: pip install 'cm3leon_jax\[data\]'"):
        read("tfds:coco_captions")


def test_coco_captions_are_read_with_the_shipped_map():
    with tfds.testing.mock_data(num_examples=3):
        records, skipped = read("tfds:coco_captions:val", count=3, part=2)
        alone, _ = read("tfds:coco_captions:val", count=3, part=100)
        examples = tfds.data_source("coco_captions", split="val")
        expected = [
            (
                f"coco_captions/val/{example['image/id']}",
                " ".join(text.split()),
                example["image"].tobytes(),
            )
            for example in (examples[i] for i in range(3))
            for text in example["captions"]["text"]
        ]
    assert [(r.group, r.segments[0], r.segments[1].tobytes()) for r in records] == expected
    assert [record.id for record in alone] == [record.id for record in records]
    assert {record.source_url for record in records} == {"http://cocodataset.org/#home"}
    assert (skipped.reasons, skipped.seen) == ([], len(expected))


@pytest.mark.parametrize("name", list(datasets.MAPS))
def test_the_shipped_maps_name_features_of_their_datasets(name):
    builder = tfds.builder("laion400m/images" if name == "laion400m" else name)
    paths = datasets._parse_fields(datasets.MAPS[name], builder)
    assert {"image", "text"} <= paths.keys()


def test_an_example_that_cannot_be_decoded_is_skipped(monkeypatch):
    with tfds.testing.mock_data(num_examples=3):
        source = type(tfds.data_source("tf_flowers", split="train"))
        read_one = source.__getitem__

        def read_all_but_one(self, number):
            if number == 1:
                raise RuntimeError("bad\nhuffman table")
            return read_one(self, number)

        monkeypatch.setattr(source, "__getitem__", read_all_but_one)
        records, skipped = read("tfds:tf_flowers")
    assert [record.id for record in records] == ["tf_flowers/train/0", "tf_flowers/train/2"]
    reason = "cannot be read: RuntimeError: bad huffman table"
    assert skipped.reasons == [f"tf_flowers/train[1]: {reason}"]
