"""Small datasets of the true schema, written to a folder, and read."""

import json
from dataclasses import asdict

import numpy as np

from cm3leon_jax import config
from cm3leon_jax.data import sources
from cm3leon_jax.data.pictures import to_png
from cm3leon_jax.data.records import Skipped

WIDE = to_png(np.zeros((4, 8, 3), np.uint8))  # 8 pixels wide, 4 high
URL = "http://images.cocodataset.org/train2017/000000000009.jpg"
LICENSES = [{"id": 1, "name": "Attribution License", "url": "http://l"}]


def write(folder, files):
    """Files by name: pictures as bytes, text as str, anything else as JSON."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(content, bytes):
            content = (content if isinstance(content, str) else json.dumps(content)).encode()
        path.write_bytes(content)
    return folder


def image(id, **more):
    return {"id": id, "file_name": f"{id:012d}.jpg", "width": 8, "height": 4, "license": 1} | more


def write_coco(folder):
    """COCO 2017 in small: pictures 9, 25, 30, of which 30 has no file, and 41 has nothing."""
    images = [image(9, flickr_url="http://f", coco_url=URL), image(25), image(30), image(41)]
    head = {"info": {"year": 2017}, "licenses": LICENSES, "images": images}
    captions = [(25, "A zebra."), (9, "A bowl\n"), (9, "Föod"), (30, "Gone"), (41, " ")]
    texts = [{"image_id": i, "id": n, "caption": c} for n, (i, c) in enumerate(captions)]
    boxes = [
        (9, 51, [1, 1, 3.5, 2], 0),
        (9, 1, [-2, 0, 4, 9], 0),
        (9, 1, [0, 0, 8, 4], 1),
        (25, 99, [0, 0, 2, 2], 0),
        (30, 1, [0, 0, 0, 2], 0),
    ]
    places = [
        {"image_id": i, "id": n, "category_id": c, "bbox": b, "iscrowd": crowd}
        for n, (i, c, b, crowd) in enumerate(boxes)
    ]
    names = [{"id": 1, "name": "person"}, {"id": 51, "name": "bowl"}]
    return write(
        folder,
        {
            "annotations/captions_train2017.json": head | {"annotations": texts},
            "annotations/captions_val2017.json": head | {"images": [], "annotations": []},
            "annotations/instances_train2017.json": head
            | {"annotations": places, "categories": names},
            **{f"train2017/{id:012d}.jpg": WIDE for id in (9, 25, 41)},
            "depth/000000000009.jpg": WIDE,  # a map of the same name
        },
    )


def read(task, source, part=2, **values):
    """All records of a dataset, read in small parts as workers do, and what was skipped."""
    data = config.Data(source=str(source), task=task, part=part, max_bad_fraction=0.999, **values)
    skipped, records = Skipped(), []
    for planned in sources.plan(data, 8):
        again = sources.Part(**json.loads(json.dumps(asdict(planned))))
        records += sources.read(again, data, 8, skipped)
    return records, skipped.reasons
