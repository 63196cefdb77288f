"""The answers to requests, and pictures that say how they were drawn.

A PNG file has its task, all fields of its request, the bundle and this software as text chunks.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image as Pillow
from PIL.PngImagePlugin import PngInfo

from cm3leon_jax.data.pictures import grid
from cm3leon_jax.decoding.generator import Generator
from cm3leon_jax.sampling.requests import TASKS, Request
from cm3leon_jax.version import __version__


class Answer(NamedTuple):
    """Pictures with their CLIP scores, where candidates were ranked, or else a text."""

    text: str = ""
    pictures: Sequence[Pillow.Image] = ()
    scores: Sequence[float] = ()


def complete(request: Request, generator: Generator) -> Request:
    """The request with what it leaves to the method or the bundle, so that it can be written down.

    Pure CD-K has no guidance and cuts only where it is told to, as `Generator.images` says.
    """
    task, c = TASKS[request.task], generator.experiment.decode
    bundle = {
        "documents": 0 if generator.memory is None else c.documents,
        "temperature": c.temperature if task.draws else c.text_temperature,
        "repetition_penalty": c.repetition_penalty,
        "guidance": c.guidance,
        "guidance_image": c.guidance_image,
        "guidance_text": c.guidance_text,
        "top_p": c.top_p,
        "top_k": c.top_k,
    }
    if "contrastive" in request.fields and not request.fields.get("mixed"):
        bundle |= {"top_p": 1.0, "top_k": 0}
        del bundle["guidance"]
    parameters = signature(getattr(generator, task.method)).parameters
    known = {name: p.default for name, p in parameters.items() if p.default is not None}
    defaults = {
        name: value for name, value in (bundle | known).items() if name in (*task.takes, "seed")
    }
    return replace(request, fields=defaults | dict(request.fields))


def answer(generator: Generator, requests: Sequence[Request]) -> list[Answer]:
    """The answer to each of some opened requests that share all but the lists of their task.

    Raises ValueError when one of them cannot be answered.
    """
    task, arguments = TASKS[requests[0].task], dict(requests[0].fields)
    if is_enlarged := arguments.pop("upscale", False):
        generator.require_upscaler()  # before anything is drawn
    for name in task.lists:
        arguments[name] = [request.fields[name] for request in requests]
    if "boxes" in arguments:
        arguments["boxes"] = [(name, tuple(corners)) for name, corners in arguments["boxes"]]
    if is_ranked := "candidates" in arguments:
        arguments["return_scores"] = True
    named = {task.names.get(name, name): value for name, value in arguments.items()}
    found = getattr(generator, task.method)(**named)
    found = found if task.lists else [found]
    if not task.draws:
        return [Answer(text) for text in found]
    n = arguments.get("n", 1)
    groups = [found[first : first + n] for first in range(0, len(found), n)]
    answers = [
        Answer("", *(list(part) for part in zip(*group))) if is_ranked else Answer("", group)
        for group in groups
    ]
    if is_enlarged:
        answers = [each._replace(pictures=_enlarge(generator, each.pictures)) for each in answers]
    return answers


def _enlarge(generator: Generator, pictures: Sequence[Pillow.Image]) -> list[Pillow.Image]:
    found = generator.upscale(list(pictures))
    assert isinstance(found, list)
    return found


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
    if not TASKS[request.task].draws:
        print(found.text)
        return
    page = grid([np.asarray(image) for image in found.pictures], min(len(found.pictures), 8))
    about = describe(request, generator.identity)
    if found.scores:
        about["scores"] = json.dumps(found.scores)
    write_png(out, Pillow.fromarray(page), about)
    print(out)
