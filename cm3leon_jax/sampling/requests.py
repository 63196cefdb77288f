"""What a bundle can be asked: the tasks, and requests with the fields that each task takes.

The fields have the same names on the command line and in the lines of a batch job; both come
through `make_request`, so that both are checked by the same rules.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cm3leon_jax.data.pictures import open_picture
from cm3leon_jax.data.records import check_text
from cm3leon_jax.fields import require, require_choice


@dataclass(frozen=True)
class Task:
    """The fields that a task must have and those that it may have, besides `seed` and, where it
    draws, `upscale`."""

    method: str  # of the Generator
    needs: tuple[str, ...]
    takes: tuple[str, ...]
    lists: tuple[str, ...] = ()  # fields that the method takes lists of, to answer several at once
    draws: bool = True  # pictures; else it writes a text
    names: Mapping[str, str] = field(default_factory=dict)  # parameter of a field, if not its name

    @property
    def fields(self) -> tuple[str, ...]:
        return (*self.needs, *self.takes, *(("upscale",) if self.draws else ()), "seed")


SAMPLING = ("temperature", "top_p", "top_k")
OF_TEXTS = ("temperature", "repetition_penalty")
TASKS = {
    "images": Task(
        "images",
        ("prompt",),
        (
            *("n", "documents", "guidance", "guidance_interval", *SAMPLING),
            *("contrastive", "candidates", "mixed", "speculative"),
        ),
        lists=("prompt",),
    ),
    "caption": Task(
        "caption", ("image",), ("style", "documents", *OF_TEXTS), ("image",), draws=False
    ),
    "answer": Task(
        "answer",
        ("image", "question"),
        ("explain", "documents", *OF_TEXTS),
        lists=("image", "question"),
        draws=False,
    ),
    "edit": Task(
        "edit",
        ("image", "prompt"),
        ("guidance_image", "guidance_text", "documents", *SAMPLING),
        lists=("image", "prompt"),
        names={"prompt": "instruction"},
    ),
    "structure": Task(
        "from_structure",
        ("image", "kind", "prompt"),
        ("guidance", "documents", *SAMPLING),
        lists=("image", "prompt"),
        names={"image": "map_image"},
    ),
    "map": Task(
        "to_structure",
        ("image", "kind"),
        ("guidance", "documents", *SAMPLING),
        ("image",),
    ),
    "boxes": Task(
        "from_boxes",
        ("prompt", "boxes"),
        ("guidance", "documents", *SAMPLING),
        names={"prompt": "caption"},
    ),
}

WHOLE = ("n", "top_k", "documents", "contrastive", "candidates", "seed")
NUMBERS = (
    *("guidance", "temperature", "top_p"),
    *("guidance_image", "guidance_text", "repetition_penalty"),
)
SWITCHES = ("mixed", "explain", "speculative", "upscale")
FIELDS = tuple(dict.fromkeys(name for task in TASKS.values() for name in task.fields))


@dataclass(frozen=True)
class Request:
    """A task and its fields, each of the right type; what they allow the generator says."""

    task: str
    fields: Mapping[str, Any]

    @property
    def options(self) -> dict[str, Any]:
        """The fields that requests must share to be answered at once."""
        lists = TASKS[self.task].lists
        return {name: value for name, value in self.fields.items() if name not in lists}

    def open(self, folder: Path, size: int) -> "Request":
        """The same with the pixels of its picture, cropped to [size size 3], in place of the file.

        folder: where a relative path begins. Raises ValueError where the picture cannot be read.
        """
        if "image" not in self.fields:
            return self
        path = self.fields["image"]
        try:
            pixels = open_picture(folder / path, size)
        except (ValueError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ValueError(f"image={path!r}: {reason}") from None
        return replace(self, fields={**self.fields, "image": pixels})


def make_request(task: Any, fields: Mapping[str, Any]) -> Request:
    """Raises ValueError for a task or a field that is not known, missing, or of another type."""
    require_choice("task", task, tuple(TASKS))
    known = TASKS[task].fields
    for name, value in fields.items():
        rule = f"task {task} takes no {name}; use {', '.join(known)}"
        require(name in known, name, value, rule)
        _check(name, value)
    for name in TASKS[task].needs:
        require(name in fields, name, None, f"use some {name}, which task {task} needs")
    return Request(task, fields)


def parse_box(text: str) -> list[Any]:
    """`name:x0,y0,x1,y1` as [name, [x0, y0, x1, y1]]."""
    name, _, corners = text.rpartition(":")
    try:
        box = [name, [float(number) for number in corners.split(",")]]
        _check("boxes", [box])
    except ValueError:
        raise ValueError(f"box={text!r}: use name:x0,y0,x1,y1 in pixels") from None
    return box


def _check(name: str, value: Any) -> None:
    if name in WHOLE:
        require(_is_number(value) and isinstance(value, int), name, value, "use a whole number")
    elif name in NUMBERS:
        require(_is_number(value), name, value, "use a number")
    elif name in SWITCHES:
        require(isinstance(value, bool), name, value, "use true or false")
    elif name == "guidance_interval":
        holds = isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))
        require(holds, name, value, "use [from, to], two shares of the image")
    elif name == "boxes":
        holds = isinstance(value, list) and bool(value) and all(map(_is_box, value))
        require(holds, name, value, "use [[name, [x0, y0, x1, y1]], ...] in pixels")
    else:
        check_text(name, value)


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and -math.inf < value < math.inf


def _is_box(value: Any) -> bool:
    match value:
        case [str(name), [x0, y0, x1, y1]]:
            return bool(name.strip()) and all(_is_number(v) for v in (x0, y0, x1, y1))
    return False
