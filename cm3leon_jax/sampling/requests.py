"""What a bundle can be asked: the tasks, and requests with the fields that each task takes.

The fields have the same names on the command line and in the lines of a batch job; both come
through `make_request`, so that both are checked by the same rules.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cm3leon_jax.data.pictures import open_picture
from cm3leon_jax.data.records import check_text
from cm3leon_jax.fields import require, require_choice


@dataclass(frozen=True)
class Task:
    """The fields that a task must have and those that it may have, besides `seed`."""

    needs: tuple[str, ...]
    takes: tuple[str, ...] = ()
    draws: bool = True  # pictures; else it writes a text
    together: str = ""  # the field that one call of the generator takes a list of

    @property
    def fields(self) -> tuple[str, ...]:
        return (*self.needs, *self.takes, "seed")


CHOICES = ("guidance", "temperature", "top_p", "top_k", "contrastive", "candidates", "mixed")
TASKS = {
    "images": Task(("prompt",), ("n", "documents", *CHOICES), together="prompt"),
    "caption": Task(
        ("image",), ("style", "documents", "temperature"), draws=False, together="image"
    ),
    "answer": Task(("image", "question"), ("explain",), draws=False),
    "edit": Task(("image", "prompt"), ("guidance_image", "guidance_text")),
    "structure": Task(("image", "kind", "prompt")),
    "boxes": Task(("prompt", "boxes")),
}

WHOLE = ("n", "top_k", "documents", "contrastive", "candidates", "seed")
NUMBERS = ("guidance", "temperature", "top_p", "guidance_image", "guidance_text")
SWITCHES = ("mixed", "explain")
FIELDS = tuple(dict.fromkeys(name for task in TASKS.values() for name in task.fields))


@dataclass(frozen=True)
class Request:
    """A task and its fields, each of the right type; what they allow the generator says."""

    task: str
    fields: Mapping[str, Any]

    @property
    def options(self) -> dict[str, Any]:
        """The fields without the one that a call takes many of."""
        together = TASKS[self.task].together
        return {name: value for name, value in self.fields.items() if name != together}

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
