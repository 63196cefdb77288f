"""What each tab does: from the values of its fields to the parts that it shows, as they come.

Every function is an iterator: the last thing it gives is the answer, those before it show how far
the model is. Wrong values raise ValueError, whose text a person reads.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from cm3leon_jax import config
from cm3leon_jax.data.instructions import find_task
from cm3leon_jax.data.records import picture_of
from cm3leon_jax.data.structures import MAPS
from cm3leon_jax.decoding.generator import Generator, Stream
from cm3leon_jax.decoding.parts import read_text
from cm3leon_jax.demo.canvas import Canvas, read_canvas
from cm3leon_jax.demo.figures import Part
from cm3leon_jax.models.image_codes import decode_codes
from cm3leon_jax.tokens import wording
from cm3leon_jax.tokens.document import Document

Parts = list[Part]


class Way(NamedTuple):
    """A way to ask about a picture: the templates that teach it, and the arguments of its call."""

    templates: tuple[str, ...]
    asks: bool  # a question
    options: dict[str, Any]


WAYS = {
    "Caption": Way((), False, {"style": "short"}),
    "Long caption": Way(("long", "narration"), False, {"style": "long"}),
    "Caption with places": Way(("grounded",), False, {"style": "grounded"}),
    "Answer": Way(("question", "choice"), True, {}),
    "Answer with reasons": Way(("choice",), True, {"explain": True}),
}
MADE, BY_MODEL, GIVEN = "Computed", "By the model", "The picture itself"


class Skills:
    """What a bundle's model was trained for; all, where its config names no tasks."""

    def __init__(self, data: config.Data):
        self.templates = {find_task(task).template for task in data.tasks}

    def has(self, *templates: str) -> bool:
        """Whether one of the templates was trained on; of none, yes."""
        return not (templates and self.templates) or not self.templates.isdisjoint(templates)

    @property
    def ways(self) -> list[str]:
        return [name for name, way in WAYS.items() if self.has(*way.templates)]

    @property
    def kinds(self) -> list[str]:
        """Of maps that the model draws pictures along."""
        return [kind for kind in wording.STRUCTURES if self.has(kind)]

    def sources(self, kind: str) -> list[str]:
        """Where a map of a kind may come from."""
        made = [MADE] if kind in MAPS else []
        return [*made, *([BY_MODEL] if self.has(f"{kind}_of") else []), GIVEN]


def examples(generator: Generator, count: int) -> tuple[list[str], list[NDArray[np.uint8]]]:
    """The texts and the pictures of the first documents of the bundle's memory that have both."""
    if generator.memory is None:
        return [], []
    records = generator.memory.records
    few = [records[i] for i in range(min(len(records), 4 * count))]
    both = [record for record in few if record.texts and record.images][:count]
    if not both:
        return [], []
    codes = np.stack([picture_of(record.segments) for record in both])
    return [record.texts[0] for record in both], [*decode_codes(generator.image_tokenizer, codes)]


def generate(
    g: Generator,
    prompt: str,
    n: int,
    candidates: int,
    guidance: float,
    documents: int,
    seed: int,
    is_watched: bool,
) -> Iterator[Parts]:
    """Pictures of a prompt, and beside them the documents that were retrieved for it.

    With more than n candidates the n best are shown, with their scores, and cannot be watched.
    """
    read_text("prompt", prompt, g.text)
    asked: dict[str, Any] = {"guidance": guidance, "documents": documents, "seed": seed}
    beside = [_tell(g, document) for document in g.find([prompt], documents)[0]]
    if candidates > n:
        pairs = g.images(prompt, n, candidates=candidates, return_scores=True, **asked)
        best = [Part(image, f"score {score:.3f}", is_drawn=True) for image, score in pairs]
        yield best + beside
        return

    def call(stream: Stream) -> Any:
        return g.images(prompt, n, stream=stream if is_watched else None, **asked)

    for pictures in watch(call):
        yield [Part(picture) for picture in pictures] + beside
    yield [Part(picture, is_drawn=True) for picture in pictures] + beside


def edit(
    g: Generator, canvas: Any, text: str, by_image: float, by_text: float, seed: int
) -> Iterator[Parts]:
    """A region filled anew, where one was drawn, under a caption; else an instruction followed."""
    given = _read(g, canvas)
    picture = given.need_picture()
    after: Any  # of one picture the Generator gives one
    if given.boxes:
        ((_, box),) = given.boxes[:1]
        hole = g.mask_image(picture, box)
        document = g.document(text, hole) if text.strip() else g.document(hole)
        after = g.parts(g.infill(document, seed=seed))[-1]
    else:
        after = g.edit(picture, text, guidance_image=by_image, guidance_text=by_text, seed=seed)
    before = Part(Pillow.fromarray(picture), "before", [("", box) for _, box in given.boxes])
    yield [before, Part(after, "after", is_drawn=True)]


def boxes(g: Generator, canvas: Any, caption: str, guidance: float, seed: int) -> Iterator[Parts]:
    """A picture of a caption with named things in rectangles, without and with these over it."""
    places = _read(g, canvas).boxes
    if not places:
        raise ValueError("boxes: drag a rectangle and name what is in it")
    picture: Any = g.from_boxes(caption, places, guidance=guidance, seed=seed)
    yield [Part(picture, "drawn", is_drawn=True), Part(picture, "with its boxes", places)]


def structure(
    g: Generator, canvas: Any, source: str, kind: str, prompt: str, guidance: float, seed: int
) -> Iterator[Parts]:
    """The map, made of a picture by code or by the model, or given; then a picture along it."""
    read_text("prompt", prompt, g.text)
    pixels = _read(g, canvas).need_picture()
    how: dict[str, Any] = {"guidance": guidance, "seed": seed}
    if source == MADE:
        try:
            pixels = MAPS[kind](pixels)
        except ImportError:
            rule = "pip install 'cm3leon_jax[data]', or take the picture as the map"
            raise ValueError(f"kind={kind!r}: its map needs scikit-image: {rule}") from None
    elif source == BY_MODEL:
        pixels = np.asarray(g.to_structure(pixels, kind, **how))
    shown = Part(Pillow.fromarray(pixels), f"map: {kind}")
    yield [shown]
    picture: Any = g.from_structure(pixels, kind, prompt, **how)
    yield [shown, Part(picture, "drawn along it", is_drawn=True)]


def ask(g: Generator, canvas: Any, way: str, question: str, seed: int) -> Iterator[Parts]:
    """A caption of a picture or the answer to a question about it."""
    picture = _read(g, canvas).need_picture()
    _, asks, options = WAYS[way]

    def call(stream: Stream) -> Any:
        how = options | {"seed": seed, "stream": stream}
        return [g.answer(picture, question, **how) if asks else g.caption(picture, **how)]

    for (text,) in watch(call):
        yield [Part(text)]


def interleave(
    g: Generator, document: Document | None, text: str, canvas: Any, segments: int, seed: int
) -> Iterator[tuple[Parts, Document | None]]:
    """The document so far, what a person adds to it, and what the model writes behind that."""
    picture = _read(g, canvas).picture
    added = [text] if text.strip() else []
    added += [] if picture is None else [picture]  # type: ignore[list-item]
    if document is None and not added:
        raise ValueError("document: begin it with a text or a picture")
    before = list(document.segments) if document else []
    begun = g.document(*before, *added)
    known, wholes = [Part(part) for part in g.parts(begun)], list[Document]()
    yield known, document  # the page keeps what was added only once there is an answer

    def call(stream: Stream) -> Any:
        wholes.append(g.complete(begun, segments, seed=seed, stream=stream))
        return g.parts(wholes[0])[len(known) :]

    for new in watch(call):
        yield [*known, *map(Part, new)], document
    yield [*known, *(Part(part, is_drawn=True) for part in new)], wholes[0]


def watch(call: Callable[[Stream], Sequence[Any]]) -> Iterator[list[Any]]:
    """What there is of each result after each row or piece, and at last what `call` returns.

    `call` runs in a thread of its own with a stream for the Generator.
    """
    heard: SimpleQueue[tuple[int, Any] | None] = SimpleQueue()
    so_far: dict[int, Any] = {}
    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(call, lambda *told: heard.put(told))
        done.add_done_callback(lambda _: heard.put(None))
        while (told := heard.get()) is not None:
            so_far |= dict([told])
            if heard.empty():  # a page that is slower than the model misses some
                yield [so_far[number] for number in sorted(so_far)]
        yield list(done.result())


def _read(g: Generator, canvas: Any) -> Canvas:
    return read_canvas(canvas, g.experiment.image_tokenizer.size)


def _tell(g: Generator, document: Document) -> Part:
    """A retrieved document as one picture with its texts, or its texts."""
    parts = g.parts(document)
    text = " ".join(part for part in parts if isinstance(part, str))
    pictures = [part for part in parts if not isinstance(part, str)]
    return Part(pictures[0] if pictures else text, text if pictures else "", is_beside=True)
