"""Readers of public datasets, on small files of the true schema that are written here."""

import json

import numpy as np
import pyarrow as arrow
import pytest
from annotated import WIDE, image, read, write, write_coco
from pyarrow import parquet

from cm3leon_jax.data.instructions import DATASETS, describe, list_files
from cm3leon_jax.data.pictures import to_png


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("coco"))


def test_a_picture_of_coco_is_one_record_with_all_its_captions(coco):
    (nine, other), reasons = read("coco_captions", coco)
    path = coco / "train2017" / "000000000009.jpg"
    assert nine.segments == ("A bowl", "Föod", path)
    assert (nine.id, nine.group, nine.source_url) == ("9", "coco/9", "http://f")
    assert nine.origin == "captions_train2017.json:1"
    assert nine.license == "Attribution License"
    assert other.segments[:1] == ("A zebra.",)
    assert reasons == [
        "captions_train2017.json:3: image '000000000030.jpg' is missing",
        "captions_train2017.json:4: caption 1 of 1 is empty",
    ]


def test_a_folder_means_its_training_split_and_a_file_can_be_named(coco):
    named = read("coco_captions", coco / "annotations" / "captions_train2017.json")[0]
    assert [r.id for r in named] == [r.id for r in read("coco_captions", coco)[0]]
    with pytest.raises(ValueError, match=r"captions_val2017.json holds no records.*CC BY 4\.0"):
        read("coco_captions", coco / "annotations" / "captions_val2017.json")


def test_boxes_are_cut_at_the_edges_and_crowds_left_out(coco):
    (nine,), reasons = read("coco_boxes", coco)
    assert nine.boxes == (("bowl", (1, 1, 4.5, 3)), ("person", (0, 0, 2, 4)))
    assert nine.segments[:-1] == ("A bowl", "Föod")  # from the file of captions
    assert reasons == [
        "instances_train2017.json:2: annotation 3: category_id=99 is not in categories",
        "instances_train2017.json:3: annotation 4: bbox=[0, 0, 0, 2] has no area",
    ]


def test_boxes_follow_a_picture_that_was_resized(tmp_path):
    write_coco(tmp_path)
    twice, square = (to_png(np.zeros((8, width, 3), np.uint8)) for width in (16, 8))
    write(tmp_path, {"train2017/000000000009.jpg": twice})
    (nine,), _ = read("coco_boxes", tmp_path)
    assert nine.boxes == (("bowl", (2, 2, 9, 6)), ("person", (0, 0, 4, 8)))
    write(tmp_path, {"train2017/000000000009.jpg": square})
    _, reasons = read("coco_boxes", tmp_path)
    where = "instances_train2017.json:1: a picture of 8 x 8 pixels, annotated at 8 x 4"
    assert reasons[0].startswith(where)


@pytest.mark.parametrize(
    ("task", "others", "trains"),
    [
        (
            f"coco_{task}",
            [f"{name}_val2017.json"],
            [f"{name}_train2014.json", f"{name}_train2017.json"],
        )
        for task, name in (("captions", "captions"), ("boxes", "instances"))
    ]
    + [
        ("openimages", ["validation-annotations-bbox.csv"], ["oidv6-train-annotations-bbox.csv"]),
        (
            "localized_narratives",
            ["coco_val_localized_narratives.jsonl", "a.jsonl"],
            ["coco_train_localized_narratives-00000-of-00004.jsonl"],
        ),
        (
            "vqa2",
            ["v2_OpenEnded_mscoco_val2014_questions.json"],
            ["v2_OpenEnded_mscoco_train2014_questions.json"],
        ),
        (
            "okvqa",
            ["OpenEnded_mscoco_val2014_questions.json"],
            ["OpenEnded_mscoco_train2014_questions.json"],
        ),
    ],
)
def test_no_other_split_is_taken_for_the_training_split(tmp_path, task, others, trains):
    write(tmp_path, dict.fromkeys(others, ""))
    with pytest.raises(ValueError, match=f"which data.task={task} reads"):
        list_files(task, str(tmp_path))
    for name in trains:  # each before those that were there
        write(tmp_path, {name: ""})
        assert list_files(task, str(tmp_path)) == [tmp_path / name]


def test_objects365_is_read_where_its_patches_lie(tmp_path):
    name = "images/v1/patch0/objects365_v1_00000000.jpg"
    content = {
        "images": [image(5, file_name=name)],
        "annotations": [
            {"id": n, "image_id": 5, "category_id": c, "bbox": box, "iscrowd": 0}
            for n, (c, box) in enumerate([(1, [0, 0, 2, 2]), (2, [2, 0, 2, 2]), (1, [4, 0, 4, 4])])
        ],
        "categories": [{"id": 1, "name": "Cup"}, {"id": 2, "name": "Desk"}],
    }
    write(tmp_path, {"elsewhere/patch0/objects365_v1_00000000.jpg": WIDE})
    tmp_path = write(tmp_path / "data", {"zhiyuan_objv2_train.json": content})
    (tmp_path / "train").symlink_to("../elsewhere")  # as people do who share pictures
    (record,), _ = read("objects365", tmp_path)
    assert record.segments[0] == "Cup, Desk"
    assert (len(record.boxes), record.group) == (3, "5")


def test_open_images_gives_shares_of_width_and_height(tmp_path):
    head = (
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf"
    )
    rows = [
        "a,xclick,/m/1,1,0.25,0.5,0,1,0,0,0",
        "a,xclick,/m/2,1,0,1,0,1,0,0,1",
        "b,xclick,/m/1,1,0,1,0,1,0,0,1",  # a group only: passed over
        "c,xclick,/m/9,1,0,1,0,1,0,0,0",
        "d,xclick,/m/2,1,0.5,0.5,0,1,0,0,0",
        "e,xclick,/m/2,1,0,0.5,0,0.5,0,0,0",
    ]
    files = {
        "oidv6-train-annotations-bbox.csv": "\n".join([head, *rows]) + "\n",
        "oidv7-class-descriptions-boxable.csv": '/m/1,Tortoise\n/m/2,"Shelf, small"\n',
    }
    write(tmp_path, files | {f"train/{name}.jpg": WIDE for name in "acde"})
    (one, last), reasons = read("openimages", tmp_path)
    assert one.boxes == (("tortoise", (2, 0, 4, 4)),)
    assert one.segments == ("tortoise", tmp_path / "train" / "a.jpg")
    assert last.boxes == (("shelf, small", (0, 0, 4, 2)),)
    assert [reason.split(": ")[:2] for reason in reasons] == [
        [
            "oidv6-train-annotations-bbox.csv:5",
            "LabelName=/m/9 is not in *class-descriptions-boxable.csv",
        ],
        [
            "oidv6-train-annotations-bbox.csv:6",
            "box XMin,XMax,YMin,YMax=0.5,0.5,0,1 has no area in [0, 1]",
        ],
    ]


KARPATHY = [
    {"filename": f"{n}.jpg", "split": split, "sentences": [{"raw": f"t{n}"}, {"raw": f"u{n}"}]}
    for n, split in enumerate(("train", "val", "test", "train"))
]
TOKEN = "".join(f"{n}.jpg#{i}\tt{n}{i}\n" for n in range(3) for i in range(2))
COMMENTS = "image_name| comment_number| comment\n" + "".join(
    f"{n}.jpg| {i}| t{n}{i}\n" for n in range(2) for i in range(2)
)


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("dataset_flickr30k.json", {"images": KARPATHY}, {"0": ["t0", "u0"], "3": ["t3", "u3"]}),
        ("results_20130124.token", TOKEN, {str(n): [f"t{n}0", f"t{n}1"] for n in range(3)}),
        (
            "results.csv",
            COMMENTS + "2.jpg| 4   no bar\n",
            {str(n): [f"t{n}0", f"t{n}1"] for n in range(2)},
        ),
    ],
)
def test_flickr30k_is_read_in_its_three_forms(tmp_path, name, content, wanted):
    pictures = {f"flickr30k-images/{n}.jpg": WIDE for n in range(4)}
    write(tmp_path, {name: content} | pictures)
    records, reasons = read("flickr30k", tmp_path)
    assert {r.id.removesuffix(".jpg"): [*r.segments[:-1]] for r in records} == wanted
    assert records[0].group == "flickr30k/0.jpg"
    bad = ["results.csv:6: caption 1 is empty: give some text"] if name == "results.csv" else []
    assert reasons == bad
    if name == "dataset_flickr30k.json":
        assert [r.id for r in read("flickr30k_test", tmp_path)[0]] == ["2.jpg"]


def test_karpathys_splits_of_coco_name_the_folder_of_the_picture(tmp_path):
    images = [
        {
            "filepath": "val2014",
            "filename": f"COCO_val2014_{n:012d}.jpg",
            "cocoid": n,
            "split": split,
            "sentences": [{"raw": "A man."}],
        }
        for n, split in ((7, "restval"), (8, "test"))
    ]
    files = {f"val2014/COCO_val2014_{n:012d}.jpg": WIDE for n in (7, 8)}
    write(tmp_path, files | {"dataset_coco.json": {"images": images, "dataset": "coco"}})
    assert [(r.id, r.group) for r in read("coco_karpathy", tmp_path)[0]] == [("7", "coco/7")]
    assert [r.id for r in read("coco_karpathy_test", tmp_path)[0]] == ["8"]


def test_paragraphs_are_those_of_the_split(tmp_path):
    told = [
        {"url": f"https://h/VG_100K/{n}.jpg", "image_id": n, "paragraph": f" Long {n}. \n More."}
        for n in (10, 11, 12)
    ]
    pictures = {"VG_100K/10.jpg": WIDE, "VG_100K_2/11.jpg": WIDE, "VG_100K/12.jpg": WIDE}
    write(tmp_path, pictures | {"paragraphs_v1.json": told})
    assert [r.id for r in read("image_paragraph", tmp_path)[0]] == ["10", "11", "12"]
    write(tmp_path, {"train_split.json": [11, 99]})
    (record,), reasons = read("image_paragraph", tmp_path)
    assert record.segments == ("Long 11. More.", tmp_path / "VG_100K_2" / "11.jpg")
    assert record.source_url == "https://h/VG_100K/11.jpg"
    assert reasons == ["train_split.json:2: image_id 99 has no paragraph"]


def test_narratives_of_several_people_are_one_group(tmp_path):
    lines = [
        {
            "dataset_id": dataset,
            "image_id": id,
            "annotator_id": who,
            "caption": text,
            "timed_caption": [{"utterance": text, "start_time": 0.0, "end_time": 1.0}],
            "traces": [[{"x": 0.2, "y": 0.3, "t": 0.0}]],
        }
        for dataset, id, who, text in [
            ("mscoco_train2017", "9", 3, "In this picture I see a bowl."),
            ("mscoco_train2017", "9", 4, "A bowl."),
            ("mscoco_train2017", "9", 5, " "),
            ("open_images_train", "a1", 3, "A hat."),
        ]
    ]
    table = "".join(json.dumps(line) + "\n" for line in lines) + "{broken\n"
    name = "coco_train_localized_narratives-00000-of-00004.jsonl"
    write(tmp_path, {name: table, "train2017/000000000009.jpg": WIDE, "train/a1.jpg": WIDE})
    records, reasons = read("localized_narratives", tmp_path)
    assert [r.segments[0] for r in records] == [lines[i]["caption"] for i in (0, 1, 3)]
    assert [r.group for r in records] == ["coco/9", "coco/9", "openimages/a1"]
    assert len({r.id for r in records}) == 3
    assert reasons[0] == f"{name}:3: caption is empty: give some text"
    assert reasons[1].startswith(f"{name}:5: broken JSON")


def ten(*answers):
    return [
        {"answer": a, "answer_confidence": "yes", "answer_id": i + 1} for i, a in enumerate(answers)
    ]


@pytest.mark.parametrize(("task", "start"), [("vqa2", "v2_"), ("okvqa", "")])
def test_vqa_trains_on_the_most_frequent_answer_and_keeps_all(tmp_path, task, start):
    given = {
        458752000: ten("net", "netting", "net", ""),
        458752001: ten("yes", "no"),
        458752002: ten("", " "),
    }
    questions = [
        {"image_id": 458752, "question": f"What is {id}?", "question_id": id}
        for id in (*given, 458752003)
    ]
    answers = [
        {"question_id": id, "image_id": 458752, "answers": a, "multiple_choice_answer": "net"}
        for id, a in reversed(given.items())
    ]
    write(
        tmp_path,
        {
            f"{'questions/' if start else ''}{start}OpenEnded_mscoco_train2014_questions.json": {
                "info": {},
                "task_type": "Open-Ended",
                "data_subtype": "train2014",
                "questions": questions,
            },
            f"{'annotations/' if start else ''}{start}mscoco_train2014_annotations.json": {
                "annotations": answers
            },
            "train2014/COCO_train2014_000000458752.jpg": WIDE,
        },
    )
    (one, two), reasons = read(task, tmp_path)
    assert (one.id, one.question, one.answer) == ("458752000", "What is 458752000?", "net")
    assert one.answers == ("net", "netting", "net")
    assert two.answer == "yes"
    assert one.group == two.group == "coco/458752"
    assert [reason.partition(": ")[2] for reason in reasons] == [
        "question 458752002: all 2 answers are empty",
        "question 458752003 has no annotation",
    ]


def test_vizwiz_questions_are_named_after_their_picture(tmp_path):
    asked = [
        {
            "image": f"VizWiz_train_0000000{n}.jpg",
            "question": "What's the name of this?",
            "answers": ten("basil", "unsuitable", "basil"),
            "answer_type": "other",
            "answerable": 1,
        }
        for n in range(2)
    ]
    write(tmp_path, {"Annotations/train.json": asked, f"train/{asked[0]['image']}": WIDE})
    (record,), reasons = read("vizwiz", tmp_path)
    assert (record.id, record.answer) == ("VizWiz_train_00000000.jpg", "basil")
    assert reasons == ["train.json:2: image 'VizWiz_train_00000001.jpg' is missing"]


def test_science_questions_carry_context_and_options_and_their_explanation(tmp_path):
    problem = {
        "question": "Which is solid?",
        "choices": ["a cup", "milk"],
        "answer": 0,
        "hint": "Look at it.",
        "image": "image.png",
        "task": "closed choice",
        "lecture": "Solids keep their shape.",
        "solution": "A cup does.",
        "split": "train",
    }
    problems = {
        "1": problem,
        "2": problem | {"image": None},
        "5": problem | {"split": "test", "hint": "", "lecture": "", "solution": ""},
        "7": problem | {"answer": 2},
    }
    pictures = {f"images/{split}/image.png": WIDE for split in ("train/1", "test/5", "train/7")}
    write(tmp_path, pictures | {"problems.json": problems})
    (one,), reasons = read("scienceqa", tmp_path)
    assert one.question == "Which is solid?\nContext: Look at it.\nOptions: (A) a cup (B) milk"
    assert one.answer == "a cup"
    picture = tmp_path / "images" / "train" / "1" / "image.png"
    assert one.segments == ("Solids keep their shape. A cup does.", picture)
    assert reasons == ["problems.json:7: answer=2: there are 2 choices"]
    (test,), _ = read("scienceqa_test", tmp_path)
    assert test.question == "Which is solid?\nOptions: (A) a cup (B) milk"
    assert len(test.segments) == 1


def test_edits_come_from_parquet_with_their_pictures(tmp_path):
    rows = [
        {
            "original_prompt": f"prompt {n // 2}",
            "original_image": {"bytes": WIDE, "path": None},
            "edit_prompt": "make it red" if n != 3 else "",
            "edited_prompt": "red",
            "edited_image": {"bytes": WIDE if n != 4 else None, "path": "x.jpg"},
        }
        for n in range(5)
    ]
    (tmp_path / "data").mkdir()
    name = "train-00000-of-00001.parquet"
    table = arrow.Table.from_pylist(rows)
    parquet.write_table(table, tmp_path / "data" / name, row_group_size=2)
    records, reasons = read("instruct_pix2pix", tmp_path, part=3)
    assert [r.segments for r in records] == [(WIDE, WIDE)] * 3
    assert {r.instruction for r in records} == {"make it red"}
    assert [r.group for r in records] == ["edits/prompt 0", "edits/prompt 0", "edits/prompt 1"]
    assert reasons == [
        f"{name}:4: edit_prompt is empty: give some text",
        f"{name}:5: a picture has no bytes: get the files with the pictures in them",
    ]
    (tmp_path / "data" / name).write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"no Parquet file .*get it again"):
        read("instruct_pix2pix", tmp_path)


def test_text_in_pictures_is_a_table_of_ones_own(tmp_path):
    write(tmp_path, {"a.jsonl": '{"image": "1.jpg", "text": "STOP"}\n', "1.jpg": WIDE})
    (record,), _ = read("ocr", tmp_path)
    assert record.segments == ("STOP", tmp_path / "1.jpg")


@pytest.mark.parametrize("task", DATASETS)
def test_a_folder_without_the_files_of_a_dataset_says_where_to_get_them(tmp_path, task):
    with pytest.raises(ValueError, match=f"which data.task={task} reads; {task}: "):
        read(task, tmp_path)
    with pytest.raises(ValueError, match=r"data.source='scenes', .*give the folder"):
        read(task, "scenes")
    assert "CC BY" in describe(task) or "page" in describe(task) or "terms" in describe(task)
