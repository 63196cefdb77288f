"""The tasks of `data.task`: how records are told and, of a public dataset, how its files are read.

    cm3leon prepare --config tiny_folder --config.data.task=edit --data edits --workdir runs/edits

Any source whose records have what a template needs can be told by it.
"""

from typing import NamedTuple

from cm3leon_jax.data.templates import TEMPLATES
from cm3leon_jax.recipes import nearest


class Task(NamedTuple):
    """What `data.task` names."""

    template: str


TASKS: dict[str, Task] = {name: Task(name) for name in TEMPLATES}


def find_task(name: str) -> Task:
    """Raises ValueError naming the nearest known tasks."""
    if name not in TASKS:
        raise ValueError(f"data.task={name!r}: no such task; {nearest(name, sorted(TASKS))}")
    return TASKS[name]
