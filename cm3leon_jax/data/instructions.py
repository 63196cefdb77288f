"""The tasks of `data.task`: how records are told and, of a public dataset, how its files are read.

    cm3leon prepare --config tiny_folder --task edit --data edits --workdir runs/edits
    cm3leon prepare --task vqa2 --help

Any source whose records have what a template needs can be told by it; a dataset has a template of
its own, or another is named: coco_captions:edges, coco_boxes:grounded. A dataset is read from the
folder that a person downloaded it to, whose files of the training split are taken, or from the
annotation file that is named. Licences are as their pages state them; read them before use.
"""

from functools import partial
from pathlib import Path
from typing import NamedTuple

from cm3leon_jax.data import coco, edits, openimages, paragraphs, questions, tables
from cm3leon_jax.data.records import Scan
from cm3leon_jax.data.templates import TEMPLATES
from cm3leon_jax.recipes import nearest


class Task(NamedTuple):
    """What `data.task` names: a template and, for a dataset, how and what files are read."""

    template: str
    scan: Scan | None = None  # None: records of any source
    files: tuple[str, ...] = ()  # patterns of annotation files; the first that match are taken
    about: str = ""  # where a person gets the data, and its licence


_COCO = (
    "cocodataset.org/#download: annotations_trainval2017.zip and train2017.zip, unpacked in one"
    " folder. Annotations CC BY 4.0; each picture under its Flickr licence, which records carry."
)
_KARPATHY = (
    "cs.stanford.edu/people/karpathy/deepimagesent/: dataset_coco.json, put beside train2014/ and"
    " val2014/ of cocodataset.org. Captions CC BY 4.0; each picture under its Flickr licence."
)
_FLICKR = (
    "shannon.cs.illinois.edu/DenotationGraph/, on request: results_20130124.token (or Kaggle's"
    " results.csv, or Karpathy's dataset_flickr30k.json) beside flickr30k-images/. For research and"
    " education only; pictures under the terms of Flickr."
)
_PARAGRAPHS = (
    "cs.stanford.edu/people/ranjaykrishna/im2p/: paragraphs_v1.json and *_split.json, put beside"
    " VG_100K/ and VG_100K_2/ of Visual Genome. Visual Genome is CC BY 4.0."
)
_SCIENCE = (
    "scienceqa.github.io: problems.json beside images/train/, images/val/, images/test/."
    " CC BY-NC-SA 4.0. Problems without a picture are passed over."
)
_BOTH_COCO = ("dataset_coco.json",)
_FLICKR_FILES = ("dataset_flickr30k.json", "results_20130124.token", "results.csv")


def _flickr(split: str) -> Task:
    scan = partial(coco.scan_karpathy, splits=(split,), is_coco=False)
    return Task("short", scan, _FLICKR_FILES[:1], _FLICKR)


DATASETS: dict[str, Task] = {
    "instruct_pix2pix": Task(
        "edit",
        edits.scan_edits,
        ("train-*.parquet", "data/train-*.parquet", "*.parquet"),
        "huggingface.co/datasets/timbrooks/instructpix2pix-clip-filtered: its data/ of Parquet"
        " files. Made with GPT-3 and Stable Diffusion, whose terms hold; see the page.",
    ),
    "ocr": Task(
        "write",
        tables.scan_jsonl,
        ("*.jsonl",),
        "Your own: JSONL lines of image and text (what is written in the picture), say made of"
        " TextOCR (textvqa.org/textocr, annotations CC BY 4.0). The paper's data is not public.",
    ),
    "coco_boxes": Task(
        "boxes", coco.scan_instances, ("instances_train2017.json", "instances_*train*.json"), _COCO
    ),
    "objects365": Task(
        "boxes",
        partial(coco.scan_instances, is_coco=False),
        ("zhiyuan_objv2_train.json", "objects365_train.json", "*train*.json"),
        "objects365.org: zhiyuan_objv2_train.json beside train/patch0/, ... Annotations CC BY 4.0;"
        " pictures from Flickr, for academic use.",
    ),
    "openimages": Task(
        "boxes",
        openimages.scan_boxes,
        ("*train-annotations-bbox.csv",),
        "storage.googleapis.com/openimages/web/download_v7.html: *train-annotations-bbox.csv and"
        f" {openimages.CLASSES} beside train/. Annotations CC BY 4.0; pictures by their page CC BY"
        " 2.0.",
    ),
    "coco_captions": Task(
        "short", coco.scan_captions, ("captions_train2017.json", "captions_*train*.json"), _COCO
    ),
    "coco_karpathy": Task(
        "short",
        partial(coco.scan_karpathy, splits=("train", "restval"), is_coco=True),
        _BOTH_COCO,
        _KARPATHY,
    ),
    "coco_karpathy_test": Task(
        "short",
        partial(coco.scan_karpathy, splits=("test",), is_coco=True),
        _BOTH_COCO,
        f"{_KARPATHY} The 5,000 pictures that captions are scored on.",
    ),
    "flickr30k": Task("short", paragraphs.scan_flickr, _FLICKR_FILES, _FLICKR),
    "flickr30k_val": _flickr("val"),
    "flickr30k_test": _flickr("test"),
    "image_paragraph": Task(
        "long",
        paragraphs.scan_paragraphs,
        ("train_split.json", "paragraphs_v1.json"),
        _PARAGRAPHS,
    ),
    "localized_narratives": Task(
        "narration",
        paragraphs.scan_narratives,
        ("*train*localized_narratives*.jsonl",),
        "google.github.io/localized-narratives: *_localized_narratives*.jsonl beside the pictures"
        " of COCO, Flickr30k, ADE20K or Open Images. Narratives CC BY 4.0.",
    ),
    "vqa2": Task(
        "question",
        questions.scan_vqa,
        ("v2_OpenEnded_mscoco_train*_questions.json",),
        "visualqa.org/download.html: questions and annotations beside train2014/ of"
        " cocodataset.org. Annotations CC BY 4.0; each picture under its Flickr licence.",
    ),
    "okvqa": Task(
        "question",
        questions.scan_vqa,
        ("OpenEnded_mscoco_train*_questions.json",),
        "okvqa.allenai.org/download.html: questions and annotations beside train2014/ of"
        " cocodataset.org. The licence is on its page; each picture under its Flickr licence.",
    ),
    "vizwiz": Task(
        "question",
        questions.scan_vizwiz,
        ("train.json",),
        "vizwiz.org/tasks-and-datasets/vqa: Annotations/train.json beside train/. CC BY 4.0.",
    ),
    **{
        name: Task(
            "choice",
            partial(questions.scan_science, split=split),
            ("problems.json", "*/problems.json"),
            _SCIENCE,
        )
        for name, split in (
            ("scienceqa", "train"),
            ("scienceqa_val", "val"),
            ("scienceqa_test", "test"),
        )
    },
}

TASKS: dict[str, Task] = {name: Task(name) for name in TEMPLATES} | DATASETS


def find_task(name: str) -> Task:
    """The task, or of DATASET:TEMPLATE the dataset told by another template.

    Raises ValueError naming the nearest known ones.
    """
    dataset, is_told, template = name.partition(":")
    if is_told:
        for part, known in ((dataset, DATASETS), (template, TEMPLATES)):
            if part not in known:
                rule = f"use DATASET:TEMPLATE; {nearest(part, sorted(known))}"
                raise ValueError(f"data.task={name!r}: {rule}")
        return DATASETS[dataset]._replace(template=template)
    if name not in TASKS:
        raise ValueError(f"data.task={name!r}: no such task; {nearest(name, sorted(TASKS))}")
    return TASKS[name]


def list_files(name: str, source: str) -> list[Path]:
    """The annotation files of a dataset: the one that is named, or those of the training split.

    They lie in it, or in its `annotations` or `questions`. Raises ValueError where there are none.
    """
    path, task = Path(source), find_task(name)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"no such folder or file: {source}; {describe(name)}")
    for pattern in task.files:
        for folder in ("", "annotations/", "Annotations/", "questions/", "Questions/"):
            if found := sorted(path.glob(folder + pattern)):
                return found
    wanted = " or ".join(task.files)
    raise ValueError(f"{source} has no {wanted}, which data.task={name} reads; {describe(name)}")


def describe(name: str) -> str:
    """Where a person gets the data of a task and its licence; or that any source will do."""
    task = find_task(name)
    return f"{name}: {task.about or 'records of any source that have what its template tells'}"
