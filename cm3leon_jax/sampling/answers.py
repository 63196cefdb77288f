"""The answers to requests, and pictures that say how they were drawn.

A PNG file has its task, all fields of its request, the bundle and this software as text chunks.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image as Pillow
from PIL.PngImagePlugin import PngInfo

from cm3leon_jax.checkpoint import fingerprint
from cm3leon_jax.data.pictures import grid
from cm3leon_jax.decoding.generator import Generator
from cm3leon_jax.sampling.requests import TASKS, Request
from cm3leon_jax.version import __version__

Answer = str | list[Pillow.Image]


def complete(request: Request, generator: Generator) -> Request:
    """The request with what it leaves to the bundle filled in, so that it can be written down."""
    c = generator.experiment.decode
    documents = 0 if generator.memory is None else c.documents
    defaults: dict[str, Any] = {}
    if request.task == "images":
        defaults = {"n": 1, "guidance": c.guidance, "temperature": c.temperature}
        defaults |= {"top_p": c.top_p, "top_k": c.top_k, "documents": documents}
    elif request.task == "caption":
        defaults = {"temperature": c.text_temperature, "documents": documents}
    return replace(request, fields={**defaults, "seed": 0, **request.fields})


def answer(generator: Generator, requests: Sequence[Request]) -> list[Answer]:
    """The answer to each of some opened requests that differ at most in what goes together.

    Raises ValueError when one of them cannot be answered.
    """
    task, options = requests[0].task, requests[0].options
    if TASKS[task].together:
        together = [request.fields[TASKS[task].together] for request in requests]
        if task == "caption":
            return list(generator.caption(together, **options))
        drawn, n = generator.images(together, **options), options["n"]
        return [drawn[first : first + n] for first in range(0, len(drawn), n)]
    return [_answer_one(generator, request.task, dict(request.fields)) for request in requests]


def _answer_one(generator: Any, task: str, fields: dict[str, Any]) -> Answer:
    if task == "answer":
        return generator.answer(fields.pop("image"), fields.pop("question"), **fields)
    if task == "edit":
        return [generator.edit(fields.pop("image"), fields.pop("prompt"), **fields)]
    if task == "structure":
        image, kind, prompt = (fields.pop(name) for name in ("image", "kind", "prompt"))
        return [generator.from_structure(image, kind, prompt, **fields)]
    boxes = [(name, tuple(corners)) for name, corners in fields.pop("boxes")]
    return [generator.from_boxes(fields.pop("prompt"), boxes, **fields)]


def identify(generator: Generator) -> str:
    """16 hex digits of a bundle, from the first numbers of every array of its two networks."""
    networks = {"transformer": generator.transformer, "images": generator.image_tokenizer}
    return fingerprint(jax.tree.map(lambda x: x[(0,) * (x.ndim - 1)][:64], networks))


def describe(request: Request, bundle: str) -> dict[str, str]:
    """The text chunks of a request's pictures: strings as they are, all else as JSON.

    Of a picture that was given only the file name is told, and not where it lay.
    """
    fields = dict(request.fields)
    if "image" in fields:
        fields["image"] = Path(fields["image"]).name
    about = {"Software": f"cm3leon_jax {__version__}", "bundle": bundle, "task": request.task}
    return about | {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in fields.items()
    }


def write_png(path: Path, image: Pillow.Image, about: Mapping[str, str]) -> None:
    """Writes a picture with text chunks; the file appears whole or not at all."""
    chunks = PngInfo()
    for name, value in about.items():
        chunks.add_text(name, value)
    partial = path.with_name(f".{path.name}.tmp")
    image.save(partial, "PNG", pnginfo=chunks)
    partial.replace(path)


def answer_one(generator: Generator, request: Request, out: Path) -> None:
    """Prints the text that answers a request, or writes its pictures to `out` as a grid."""
    request = complete(request, generator)
    size = generator.experiment.image_tokenizer.size
    (found,) = answer(generator, [request.open(Path(), size)])
    if isinstance(found, str):
        print(found)
        return
    page = grid([np.asarray(image) for image in found], min(len(found), 8))
    write_png(out, Pillow.fromarray(page), describe(request, identify(generator)))
    print(out)
