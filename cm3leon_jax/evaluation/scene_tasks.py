"""Every task on held-out scenes: pictures by analysis by synthesis, texts word for word.

A held-out scene is one whose id no task was trained on. Where a caption comes with a map or with
boxes it says neither places nor sizes, so that they are read from the map or the boxes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cm3leon_jax import config
from cm3leon_jax.data.records import Record, is_held_out
from cm3leon_jax.data.scene_paragraphs import all_true
from cm3leon_jax.data.scene_records import count as count_records
from cm3leon_jax.data.scene_records import records
from cm3leon_jax.data.scenes import CELL, SHAPES, SIZES, Object, Scene, paint_labels, segmentation
from cm3leon_jax.data.sources import for_task
from cm3leon_jax.decoding.generator import Generator
from cm3leon_jax.decoding.parts import HOLE
from cm3leon_jax.evaluation import scenes
from cm3leon_jax.tokens import wording

REASON = "So the answer is"  # behind the explanation of an answer


@dataclass(frozen=True)
class Result:
    """Which answers are right, and for the report what was asked with and answered."""

    right: NDArray[np.bool_]  # [B]
    asked: list[tuple[list[NDArray[np.uint8]], str]]  # pictures and text of each request
    answers: Sequence[Any] | NDArray[np.uint8]  # a text or a picture (uint8 [Y X 3]) for each
    wanted: Sequence[Any] | NDArray[np.uint8]

    def cards(self) -> list[tuple[list[NDArray[np.uint8]], str]]:
        """Of each request the pictures, asked with, answered and true, and what the texts say."""
        made = []
        for (pictures, text), answer, wanted in zip(self.asked, self.answers, self.wanted):
            if isinstance(answer, str):
                made.append((pictures, f"{text} {answer} (true: {wanted})".strip()))
            else:
                made.append(([*pictures, answer, wanted], text))
        return made

    def score(self) -> dict[str, float]:
        """Share that is right with its 95 % interval."""
        low, high = scenes.wilson(self.right.sum(), len(self.right))
        return {
            "mean": float(self.right.mean()),
            "low": low,
            "high": high,
            "count": len(self.right),
        }


def held_out_records(data: config.Data, grid: int, task: str, count: int) -> list[Record]:
    """The first `count` held-out records, or as many as there are, of those read for a task."""
    found = records(for_task(data, task).count or count_records(task, grid), data.seed, grid, task)
    return list(islice((r for r in found if is_held_out(r.group, data.held_out)), count))


def evaluate_task(
    generator: Generator,
    task: str,
    data: config.Data,
    count: int,
    seed: int = 0,
    documents: int | None = None,
) -> Result:
    """Answers `count` held-out requests of a task of TASKS with the bundle's sampling settings.

    documents: so many retrieved ones stand in front, where the task's method takes them.
    """
    _, run = TASKS[task]
    if not (found := requests(generator, task, data, count)):
        rule = "none of the task's records is held out; give more, or another data.held_out"
        raise ValueError(f"data.count={data.count}: {rule}")
    how: How = {"seed": seed} if documents is None else {"seed": seed, "documents": documents}
    return run(generator, found, how)


def requests(generator: Generator, task: str, data: config.Data, count: int) -> list[Record]:
    """What `evaluate_task` asks."""
    grids = {layout.size: grid for grid, layout in scenes.LAYOUTS.items()}
    grid = grids[generator.experiment.image_tokenizer.size]
    return held_out_records(data, grid, TASKS[task][0], count)


def of_templates(templates: Sequence[str]) -> list[str]:
    """Those of TASKS whose template is among them."""
    return [name for name, (template, _) in TASKS.items() if template in templates]


def _compose(generator: Generator, found: list[Record], how: "How") -> Result:
    asked, wanted = [_text(r) for r in found], _last(found)
    return _pictures(generator.images(asked, **how), wanted, [([], text) for text in asked])


def _edit(generator: Generator, found: list[Record], how: "How") -> Result:
    before, instructions = [_image(r, 0) for r in found], [r.instruction or "" for r in found]
    drawn = generator.edit(before, instructions, **how)
    asked = [([image], text) for image, text in zip(before, instructions)]
    return _pictures(drawn, _last(found), asked)


def _from_map(kind: str) -> "Run":
    def run(generator: Generator, found: list[Record], how: "How") -> Result:
        maps, texts = [_image(r, 1) for r in found], [_text(r) for r in found]
        drawn = generator.from_structure(maps, kind, texts, **how)
        return _pictures(drawn, _last(found), [([m], t) for m, t in zip(maps, texts)])

    return run


def _to_map(kind: str) -> "Run":
    def run(generator: Generator, found: list[Record], how: "How") -> Result:
        images, maps = _last(found), np.stack([_image(r, 1) for r in found])
        drawn = _stack(generator.to_structure(list(images), kind, **how))
        right = (_read_maps(drawn) == _read_maps(maps)).all(1)
        return Result(right, [([image], kind) for image in images], drawn, maps)

    return run


def _boxes(generator: Generator, found: list[Record], how: "How") -> Result:
    texts, places = [_text(r) for r in found], [list(r.boxes) for r in found]
    drawn = generator.from_boxes(texts, places, **how)  # type: ignore[arg-type]
    asked = [wording.boxes(text, box) for text, box in zip(texts, places)]  # type: ignore[arg-type]
    return _pictures(drawn, _last(found), [([], text) for text in asked])


def _letters(generator: Generator, found: list[Record], how: "How") -> Result:
    words, wanted = [_text(r) for r in found], _last(found)
    drawn = _stack(generator.images([wording.write(word) for word in words], **how))
    truth = scenes.read_images(wanted, _grid(wanted), letters=True)
    read = scenes.compare(scenes.read_images(drawn, _grid(drawn), letters=True), truth)
    right = (read["presence"] == 1) & (read["shape"] == 1)
    return Result(right, [([], word) for word in words], drawn, wanted)


def _caption(generator: Generator, found: list[Record], how: "How") -> Result:
    images, wanted = _last(found), [_text(r) for r in found]
    told = generator.caption(list(images), **how)
    read = scenes.read_captions(told, _grid(images))
    truth = scenes.read_captions(wanted, _grid(images))
    right = scenes.compare(read, truth)["exact"] == 1
    return Result(right, [([image], "") for image in images], told, wanted)


def _ground(generator: Generator, found: list[Record], how: "How") -> Result:
    images = _last(found)
    told = generator.caption(list(images), style="grounded", **how)
    wanted = [
        f"{_text(r)} with segmentations {wording.places(r.boxes)}"  # type: ignore[arg-type]
        for r in found
    ]
    return _texts(told, wanted, [([image], "") for image in images])


def _describe(generator: Generator, found: list[Record], how: "How") -> Result:
    """Right is a paragraph whose every sentence is true, with as many different ones as the
    record's own: a single safe one describes nothing."""
    images, wanted = _last(found), [_text(r) for r in found]
    told = generator.caption(list(images), style="long", **how)
    shown = scenes.find_scenes(images, _grid(images))
    right = [
        all_true(text, scene) and _count_sentences(text) >= _count_sentences(own)
        for text, own, scene in zip(told, wanted, shown)
    ]
    return Result(np.array(right), [([image], "") for image in images], told, wanted)


def _fill_words(generator: Generator, found: list[Record], how: "How") -> Result:
    """One word that says something is missing in each caption."""
    images, wanted, told, asked = _last(found), [_text(r) for r in found], [], []
    for number, (image, text) in enumerate(zip(images, wanted)):
        words = text.split(" ")
        places = [i for i, word in enumerate(words) if word not in ("a", "and", "on")]
        words[places[number % len(places)]] = HOLE
        document = generator.document(" ".join(words), image)
        filled = generator.parts(generator.infill(document, seed=how["seed"]))[0]
        told.append(str(filled))
        asked.append(([image], " ".join(words)))
    return _texts(told, wanted, asked)


def _fill_bands(generator: Generator, found: list[Record], how: "How") -> Result:
    """The upper and the lower half of the pictures are missing in turn."""
    images, drawn, asked = _last(found), [], []
    size = images.shape[1]
    for number, (record, image) in enumerate(zip(found, images)):
        top = number % 2 * size // 2
        cut = generator.mask_image(image, (0, top, size, top + size // 2))
        document = generator.document(_text(record), cut)
        filled = generator.infill(document, seed=how["seed"])
        drawn.append(np.asarray(generator.parts(filled)[1]))
        asked.append(([np.asarray(generator.parts(document)[1])], _text(record)))
    return _pictures(drawn, images, asked)


def _answer(explain: bool) -> "Run":
    def run(generator: Generator, found: list[Record], how: "How") -> Result:
        images, questions = _last(found), [r.question or "" for r in found]
        told = generator.answer(list(images), questions, explain=explain, **how)
        wanted = [r.answer or "" for r in found]
        said = [text.rpartition(REASON)[2].strip(" .") for text in told]
        asked = [([image], text) for image, text in zip(images, questions)]
        right = np.array([a == b for a, b in zip(said, wanted)])
        return Result(right, asked, told, wanted)

    return run


How = dict[str, Any]
Run = Callable[[Generator, list[Record], How], Result]
TASKS: dict[str, tuple[str, Run]] = {
    "composition": ("plain", _compose),
    "captions": ("plain", _caption),
    "paragraphs": ("long", _describe),
    "questions": ("question", _answer(False)),
    "explained": ("choice", _answer(True)),
    "edits": ("edit", _edit),
    "edges to image": ("edges", _from_map("edges")),
    "segmentation to image": ("segmentation", _from_map("segmentation")),
    "image to segmentation": ("segmentation_of", _to_map("segmentation")),
    "boxes to image": ("boxes", _boxes),
    "image to boxes": ("grounded", _ground),
    "letters": ("write", _letters),
    "words filled in": ("infill", _fill_words),
    "halves filled in": ("infill", _fill_bands),
}


def _pictures(
    drawn: Any, wanted: NDArray[np.uint8], asked: list[tuple[list[NDArray[np.uint8]], str]]
) -> Result:
    """Right is a picture of the wanted one's scene and nothing else."""
    pixels, grid = _stack(drawn), _grid(wanted)
    truth = scenes.read_images(wanted, grid)
    right = scenes.compare(scenes.read_images(pixels, grid), truth)["exact"] == 1
    return Result(right, asked, pixels, wanted)


def _texts(
    told: Sequence[str], wanted: Sequence[str], asked: list[tuple[list[NDArray[np.uint8]], str]]
) -> Result:
    return Result(np.array([a == b for a, b in zip(told, wanted)]), asked, told, wanted)


def _count_sentences(text: str) -> int:
    """Different ones."""
    return len({*text.lower().strip().removesuffix(".").split(". ")})


def _read_maps(maps: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Which map of a cell, empty or of a shape in a size, is nearest to each cell: [B cells]."""
    shown = [Scene((), "white")]
    shown += [Scene((Object(s, "red", e, 0),), "white") for s in SHAPES for e in SIZES]
    forms = np.stack([paint_labels(segmentation(one))[:CELL, :CELL] for one in shown])
    layout = scenes.LAYOUTS[_grid(maps)]
    corners = [layout.corner(cell) for cell in range(layout.grid**2)]
    cells = np.stack([maps[:, y : y + CELL, x : x + CELL] for y, x in corners], axis=1)
    apart = cells[:, :, None].astype(np.float32) - forms
    return np.square(apart).sum((3, 4, 5)).argmin(2)


def _stack(drawn: Any) -> NDArray[np.uint8]:
    return np.stack([np.asarray(image) for image in drawn])


def _grid(images: NDArray[np.uint8]) -> int:
    return next(grid for grid, layout in scenes.LAYOUTS.items() if layout.size == images.shape[1])


def _last(found: Sequence[Record]) -> NDArray[np.uint8]:
    return np.stack([_image(record, -1) for record in found])


def _image(record: Record, place: int) -> NDArray[np.uint8]:
    return np.asarray(record.segments[place], np.uint8)


def _text(record: Record) -> str:
    return str(record.segments[0])
