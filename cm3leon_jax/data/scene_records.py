"""Records of scenes for every task, each with exact ground truth.

    edit                          (image before, image after) with the instruction
    edges, segmentation, ..._of   (outline, map picture, image)
    boxes, grounded               (outline, image) with boxes
    write                         (word, image of its letters)
    long                          (paragraph, image)
    any other                     (caption, image) with boxes, a question and its answer

An outline says colours, shapes and background; places and sizes are read from the map or boxes.
A record is named after its (first) scene whatever the task, so that a held-out scene is held out of
every task. The scene after an edit may still be one that is held out elsewhere.
"""

from collections.abc import Iterator

import numpy as np

from cm3leon_jax.data.records import Record
from cm3leon_jax.data.scene_paragraphs import paragraph
from cm3leon_jax.data.scene_text import caption, edit, outline, questions
from cm3leon_jax.data.scenes import (
    Scene,
    boxes,
    count_scenes,
    count_words,
    edges,
    paint_labels,
    pick,
    render,
    sample_scenes,
    sample_words,
    segmentation,
)

KINDS = (
    "caption",
    "edit",
    "edges",
    "segmentation",
    "write",
    "boxes",
    "long",
)  # each draws by its place here


def records(
    count: int, seed: int, grid: int = 2, task: str = "plain", start: int = 0
) -> Iterator[Record]:
    """Yield `count` records of different scenes, the same ones for the same `seed`, from the
    record number `start` on; no other one is drawn. `task` is a name of `instructions.TASKS`."""
    kind = kind_of(task)
    sample = sample_words if kind == "write" else sample_scenes
    for number, scene in enumerate(sample(count, seed, grid, start=start), start):
        rng = np.random.default_rng([seed, KINDS.index(kind), number])
        yield _record(scene, kind, rng)


def count(task: str = "plain", grid: int = 2) -> int:
    """How many records of a task there are: half of what there could be, so that none is rare."""
    return (count_words() if kind_of(task) == "write" else count_scenes(grid)) // 2


def word(scene: Scene) -> str:
    """The letters of a scene in raster order."""
    return "".join(o.shape for o in scene.objects)


def _record(scene: Scene, kind: str, rng: np.random.Generator) -> Record:
    image = render(scene)
    match kind:
        case "edit":
            instruction, after = edit(scene, rng)
            return Record(scene.id, (image, render(after)), instruction=instruction)
        case "edges":
            return Record(scene.id, (outline(scene), edges(scene), image))
        case "segmentation":
            return Record(scene.id, (outline(scene), paint_labels(segmentation(scene)), image))
        case "boxes":
            return Record(scene.id, (outline(scene), image), tuple(boxes(scene)))
        case "write":
            return Record(scene.id, (word(scene), image))
        case "long":
            return Record(scene.id, (paragraph(scene, rng), image))
    question, answer = pick(rng, questions(scene, rng))
    return Record(scene.id, (caption(scene), image), tuple(boxes(scene)), question, answer)


def kind_of(task: str) -> str:
    """Which of KINDS has what the task tells. Raises ValueError where scenes have none."""
    missing = ("hed", "depth", "normals", "pose", "scribble", "lines")
    kind = {"grounded": "boxes"}.get(task, task.removesuffix("_of"))
    if kind in missing:
        raise ValueError(f"data.task={task!r}: scenes have no such maps; use edges or segmentation")
    return kind if kind in KINDS else "caption"
