"""What is trained on, declared once: SeqIO tasks over prepared work directories, and their blends.

    add_task("scenes", "runs/quickstart")
    add_task("emoji", "runs/emoji", template="image_first")
    add_mixture("blend", {"scenes": 0.7, "emoji": 0.3})

SeqIO and T5X read the declaration as any other. `resolve` reads tasks and rates back from it for
our own loader, which then needs neither SeqIO nor TensorFlow: both are loaded by declaring only.
"""

import importlib
import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cm3leon_jax import recipes
from cm3leon_jax.data.examples import Source
from cm3leon_jax.data.seqio_features import image_tokenizer_of, import_seqio, task_parts

Rate = float | Callable[[Any], float]
SPLITS = {"train": "train", "validation": "held_out"}  # SeqIO's names and those of our sets


def add_task(name: str, workdir: str | Path, template: str = "", run: str | Path = "") -> str:
    """Registers the documents of a prepared work directory as a `seqio.Task`; returns the name.

    `run` is the work directory whose config.json (id space, objective, retrieval) and text.model
    hold when SeqIO reads the task; by default the same one. Without a template documents are told
    by the directory's own `data.task`. Our loader has those of its own run. A
    task of that name which was declared here before is replaced. Raises ValueError where the
    directory is not prepared or the template is not known.
    """
    seqio = import_seqio()
    sources = {
        split: Source(name, str(workdir), side, template)  # type: ignore[arg-type]
        for split, side in SPLITS.items()
    }
    parts = task_parts(sources, Path(run or workdir))
    if name in seqio.TaskRegistry.names():
        meaning = getattr(seqio.TaskRegistry.get(name).source, "meaning", None)
        if meaning == parts["source"].meaning:
            return name  # gin calls once for every mention; a mixture has each task once
        if meaning:
            seqio.TaskRegistry.remove(name)
    seqio.TaskRegistry.add(name, **parts)
    return name


def add_mixture(
    name: str,
    tasks: Mapping[str, float] | Sequence[str],
    cap: int = 0,
    temperature: float = 1.0,
    up: float = math.inf,
    down: float = 0.0,
) -> str:
    """Registers a blend of tasks and mixtures as a `seqio.Mixture`; returns the name.

    A mapping gives every part its rate. A list of tasks takes them in proportion to min(documents
    to train on, `cap`) ** (1 / temperature); a `cap` of 0 is none. A task is then seen at most `up`
    and at least `down` times as often as its share of all documents would have it: how we read the
    paper, which balances with 3 and 0.3 (appendix E) and does not say more. A mixture of that name
    that was there before is replaced.
    """
    seqio = import_seqio()
    known = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    for task in tasks:
        if task not in known:
            raise ValueError(f"mixture {name!r}: no task {task!r}; {_nearest(task, known)}")
    rates: dict[str, Rate] = {}
    if isinstance(tasks, Mapping):
        if cap or temperature != 1:
            raise ValueError(
                f"mixture {name!r}: cap={cap}, temperature={temperature} and rates: rates are"
                " final; give a list of tasks, or no cap and temperature"
            )
        if not all(0 <= rate < math.inf for rate in tasks.values()) or not sum(tasks.values()):
            rule = "use numbers >= 0, one of them above 0"
            raise ValueError(f"mixture {name!r}: rates {dict(tasks)}: {rule}")
        rates.update(tasks)
    else:
        if cap < 0 or temperature <= 0:
            rule = "use cap >= 0 and temperature > 0"
            raise ValueError(f"mixture {name!r}: cap={cap}, temperature={temperature}: {rule}")
        _check_counted(name, tasks)
        of_documents = partial(
            seqio.mixing_rate_num_examples, maximum=cap or None, temperature=temperature
        )
        rates.update(dict.fromkeys(tasks, of_documents))
    if up != math.inf or down:
        if not 0 <= down <= 1 <= up:
            raise ValueError(f"mixture {name!r}: up={up}, down={down}: use up >= 1 >= down >= 0")
        _check_counted(name, tasks)
        if none := [task for task, rate in rates.items() if not rate]:
            raise ValueError(f"mixture {name!r}: up={up}, down={down}: leave out {none[0]!r}: 0")
        found = [seqio.TaskRegistry.get(task) for task in rates]
        wanted = [rate(t) if callable(rate) else rate for t, rate in zip(found, rates.values())]
        counts = [task.num_input_examples("train") for task in found]
        rates = dict(zip(rates, bounded(wanted, counts, up, down).tolist()))
    seqio.MixtureRegistry.remove(name)
    seqio.MixtureRegistry.add(name, list(rates.items()))
    return name


def bounded(
    rates: Sequence[float], counts: Sequence[int], up: float, down: float
) -> NDArray[np.float64]:
    """Shares [N] that add up to 1: in proportion to the rates, but each within `down` and `up`
    times the share of its count. `down` <= 1 <= `up`."""
    wanted = np.array(rates, np.float64) / sum(rates)
    natural = np.array(counts, np.float64) / sum(counts)
    lowest, highest = down * natural, np.minimum(up * natural, 1)
    low, high = 0.0, 1 / wanted[wanted > 0].min()  # scales; with the upper one the sum is enough
    for _ in range(100):
        middle = (low + high) / 2
        is_less = np.clip(wanted * middle, lowest, highest).sum() < 1
        low, high = (middle, high) if is_less else (low, middle)
    shares = np.clip(wanted * high, lowest, highest)
    return shares / shares.sum()


def _check_counted(name: str, tasks: Iterable[str]) -> None:
    """Mixtures have no documents of their own."""
    known = import_seqio().TaskRegistry.names()
    if inner := [task for task in tasks if task not in known]:
        rule = "only tasks are counted; give rates, {name: rate}"
        raise ValueError(f"mixture {name!r}: {inner[0]!r} is a mixture: {rule}")


def resolve(mixture: str, workdir: str | Path, split: str = "train") -> list[tuple[Source, float]]:
    """The sources that a declaration names, with weights that add up to 1; rates of 0 are left out.

    mixture: a gin file by path or by shipped name ("mixtures/pretrain.gin"), or "module:name" of a
        Python module that declares and the task or mixture to take; or, for which SeqIO is not
        loaded, work directories with their rates and, if not their own, their templates,
        "runs/scenes:question=0.7,runs/edits=0.3". Empty: the documents of `workdir` alone.
    workdir: the run's own; where it has documents, they and the sources share an image tokenizer.
    split: "train" or "held_out".

    Raises ValueError for what is not declared, not ours, or coded by different image tokenizers.
    """
    own = Source(Path(workdir).name, str(workdir), split)  # type: ignore[arg-type]
    if not mixture:
        return [(own, 1.0)]
    prepared = (Path(workdir) / "documents").exists()
    if "=" in mixture:
        listed = [_read_listed(part, mixture, split) for part in mixture.split(",")]
        _check_codes(mixture, [*([own] if prepared else []), *(source for source, _ in listed)])
        whole = sum(rate for _, rate in listed)
        return [(source, rate / whole) for source, rate in listed]
    seqio = import_seqio()
    logging.getLogger("absl").setLevel(logging.ERROR)  # or every count of documents is a warning
    name = _import(mixture) if ":" in mixture else _run_gin(recipes.find(mixture, "gin"))
    declared = seqio.get_mixture_or_task(name)
    tasks = seqio.get_subtasks(declared)
    for task in tasks:
        if not hasattr(task.source, "sources"):
            rule = "declare it with cm3leon_jax.data.tasks.add_task"
            raise ValueError(f"{mixture}: task {task.name!r} has no prepared documents: {rule}")
    is_task = isinstance(declared, seqio.Task)
    rates = [1.0 if is_task else declared.get_rate(task) for task in tasks]
    sources = [
        next(source for source in task.source.sources.values() if source.split == split)
        for task in tasks
    ]
    _check_codes(mixture, [own, *sources] if prepared else sources)
    return [(source, rate / sum(rates)) for source, rate in zip(sources, rates) if rate > 0]


def _read_listed(part: str, mixture: str, split: str) -> tuple[Source, float]:
    """One work directory of a list, DIRECTORY[:TEMPLATE]=RATE."""
    place, _, rate = part.strip().rpartition("=")
    workdir, _, template = place.rpartition(":") if ":" in place else (place, "", "")
    try:
        value = float(rate)
    except ValueError:
        value = 0.0
    if not (workdir and 0 < value < math.inf):
        rule = "use DIRECTORY[:TEMPLATE]=RATE,... with rates above 0"
        raise ValueError(f"data.mixture={mixture!r}: {part.strip()!r}: {rule}")
    return Source(place, workdir, split, template), value  # type: ignore[arg-type]


def _check_codes(mixture: str, sources: Sequence[Source]) -> None:
    """Codes mean something only to the image tokenizer that made them."""
    made = {image_tokenizer_of(source): source.workdir for source in sources}
    if len(made) > 1:
        (one, here), (other, there), *_ = made.items()
        raise ValueError(
            f"{mixture}: {here} was prepared with image tokenizer {one}, {there} with {other}:"
            " prepare both with one"
        )


def _import(mixture: str) -> str:
    """Imports the module of "module:name"; returns the name, which is then declared."""
    module, _, name = mixture.rpartition(":")
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        rule = "install it, or put its folder on PYTHONPATH"
        raise ValueError(f"{mixture}: {error}; {rule}") from error
    seqio = import_seqio()
    known = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    if name not in known:
        raise ValueError(f"{mixture}: no task or mixture {name!r}; {_nearest(name, known)}")
    return name


def _run_gin(path: Path) -> str:
    """Declares what a gin file binds; returns the name of its outermost mixture."""
    with recipes.fresh_gin() as gin:
        try:
            gin.parse_config_file(str(path))
            bound = [selector for scope, selector in gin.config._CONFIG if not scope]
            if not any(selector.endswith("tasks.add_mixture") for selector in bound):
                raise ValueError("no tasks.add_mixture is bound: bind its name and tasks")
            return gin.get_configurable(add_mixture)()
        except Exception as error:  # gin raises many kinds; all mean a line it cannot use
            raise ValueError(_explain(path, error)) from error


def _explain(path: Path, error: Exception) -> str:
    """One line for what gin raised: place, reason."""
    text = str(error)
    line, scope = re.search(r"line (\d+)", text), re.search(r"in scope '(.+)'", text)
    place = f"{path}:{line[1]}" if line else f"{path}: {scope[1]}" if scope else path
    return f"{place}: {text.splitlines()[0]}"


def _nearest(name: str, known: set[str]) -> str:
    return recipes.nearest(name, sorted(known)) if known else "none is declared"
