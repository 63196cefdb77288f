"""Units of work: a source prepared, a model trained, a question answered. Each is made once.

WORK/SOURCE/prepared/             tokenizers, retriever, documents, neighbours: of all models
WORK/SOURCE/tasks/                documents of the instruction tasks
WORK/SOURCE/MODEL-SEED/bundle     with second names of what is prepared
WORK/SOURCE/MODEL-SEED/answers/   a JSON file a question: values, protocol, seconds
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from benchmarks.claims.crossing import spans_across_breaks
from benchmarks.claims.measures import ASKS, CD_K, FD, POOL, SIDE, unit_of
from benchmarks.claims.parts import DECODED, MODELS, PARTS, TAU, Setup
from cm3leon_jax import config, picture_stages, presets, stages
from cm3leon_jax.checkpoint import write_json
from cm3leon_jax.data.collection import collect
from cm3leon_jax.data.prepare import prepare
from cm3leon_jax.decoding.generator import Generator, load
from cm3leon_jax.fields import require
from cm3leon_jax.start import adopt

# Estimates of one core: FLOPs a second in training, and seconds of all else, of questions about 256
# pictures in 16 codes.
FLOPS = 4.2e10
SECONDS = {"pictures": 5, "captions": 5, "loss": 5, "decoded": 5, "pools": 90, "tasks": 90}
PREPARING, COMPILING = 300, 20


class Unit(NamedTuple):
    """What makes a result that is not there yet, and about how long that takes."""

    name: str
    result: Path
    make: Callable[[], None]
    seconds: float


def list_units(
    work: Path, setups: Mapping[str, Setup], parts: Sequence[str], seeds: int
) -> list[Unit]:
    """All units in an order in which each finds what it needs, whole parts one after the other."""
    found: dict[Path, Unit] = {}
    for source, setup in setups.items():
        for letter, part in PARTS.items():
            if letter not in parts or source not in (part.sources or setups):
                continue
            cells = [part.cell(column, row) for row in part.rows for column in part.columns]
            for seed in range(seeds):
                for cell in cells if seed else [DECODED, *cells]:
                    for unit in _units_of(work / source, setup, cell, seed):
                        found.setdefault(unit.result, unit)
    return list(found.values())


def _units_of(folder: Path, setup: Setup, cell: Mapping[str, Any], seed: int) -> Iterator[Unit]:
    """What one cell of a table needs of one seed."""
    c = setup.experiment
    result = folder / "prepared" / "done.json"
    yield Unit(f"{folder.name}: prepare", result, partial(prepare_source, c, folder), PREPARING)
    for model in ("base", "tuned") if cell["model"] == "tuned" else (cell["model"],):
        yield Unit(
            f"{folder.name}: train {model}-{seed}",
            folder / f"{model}-{seed}" / "bundle",
            partial(train, c, folder, model, seed),
            COMPILING + train_flops(model_of(c, model, seed)) / FLOPS,
        )
    yield Unit(
        f"{folder.name}: ask {cell['model']}-{seed} for {question(cell)}",
        answer_path(folder, cell, seed),
        partial(answer, setup, folder, cell, seed),
        SECONDS[cell["ask"]] * setup.count * c.model.image_tokens / (256 * 16),
    )


def prepare_source(c: config.Experiment, folder: Path) -> None:
    """All stages but the last, of one source for all of its models."""
    run, collection = folder / "prepared", collect(c.data, c.image_tokenizer.size)
    stages.open_workdir(c, run)
    stages.train_text_tokenizer(c, collection, run)
    picture_stages.train_image_tokenizer(c, collection, run)
    picture_stages.train_retriever(c, collection, run)
    prepare(c, run)
    write_json(run / "done.json", stages.retrieve(c, run))


@lru_cache
def model_of(c: config.Experiment, model: str, seed: int) -> config.Experiment:
    """The experiment of one of MODELS; of `tuned` without where it starts from."""
    c = presets.tuned(c) if model == "tuned" else c
    return config.replace(c, MODELS[model] | {"train.seed": seed})


def train(c: config.Experiment, folder: Path, model: str, seed: int) -> None:
    """Trains a model on what is prepared, or goes on with it; `tuned` on the tasks, from `base`."""
    run, prepared = folder / f"{model}-{seed}", folder / "prepared"
    experiment = model_of(c, model, seed)
    if model == "tuned":
        stages.prepare_tasks(c, folder / "tasks", prepared)
        mixture = stages.mixture_of_tasks(c.data, folder / "tasks", prepared)
        start = {"data.mixture": mixture, "train.start_from": str(folder / f"base-{seed}")}
        experiment = config.replace(experiment, start)
        stages.open_workdir(experiment, run)
    else:
        stages.open_workdir(experiment, run)
        shared = {"data.mixture": str(prepared), "train.start_from": str(prepared)}
        adopt(config.replace(experiment, shared), run)
    with spans_across_breaks() if model == "across" else nullcontext():
        stages.train_transformer(experiment, run)


def answer(setup: Setup, folder: Path, cell: Mapping[str, Any], seed: int) -> None:
    """Asks a trained model and writes down what was found."""
    begun, bundle = time.perf_counter(), folder / f"{cell['model']}-{seed}" / "bundle"
    generator, wanted = _load(bundle), model_of(setup.experiment, cell["model"], seed)
    steps, rule = generator.experiment.train.steps, "remove that model's folder, today's is of"
    require(steps == wanted.train.steps, f"{bundle}: steps", steps, f"{rule} {wanted.train.steps}")
    values = ASKS[cell["ask"]](generator, setup, folder / "prepared", **options(cell))
    path = answer_path(folder, cell, seed)
    path.parent.mkdir(exist_ok=True)
    content = {
        "question": question(cell),
        "values": values,
        "protocol": protocol(setup, cell["ask"]),
        "seconds": round(time.perf_counter() - begun, 1),
        "device": f"{jax.devices()[0].device_kind} ({jax.devices()[0].platform})",
    }
    write_json(path, content)


def protocol(setup: Setup, ask: str) -> dict[str, Any]:
    """What has to be the same for all values that are compared, beside model and options."""
    c = setup.experiment
    unit = unit_of(ask, c.data.source)
    return {
        "data": {"source": c.data.source, "count": c.data.count, "held_out": c.data.held_out},
        "asked": {"pictures": setup.count, "pooled": setup.pooled},
        "size": c.image_tokenizer.size,
        "unit": unit,
        "seen_at": SIDE if unit == FD else None,
        "steps": c.train.steps,
        "pools": {"contrastive": CD_K, "of": POOL, **TAU} if ask == "pools" else None,
    }


def read_answer(folder: Path, cell: Mapping[str, Any], seed: int) -> dict[str, Any] | None:
    path = answer_path(folder, cell, seed)
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def answer_path(folder: Path, cell: Mapping[str, Any], seed: int) -> Path:
    name = question(cell).replace(" ", "_")
    return folder / f"{cell['model']}-{seed}" / "answers" / f"{name}.json"


def question(cell: Mapping[str, Any]) -> str:
    """What is asked and its options, in a fixed order."""
    told = (f"{name}={value}" for name, value in sorted(options(cell).items()))
    return " ".join((cell["ask"], *told))


def options(cell: Mapping[str, Any]) -> dict[str, Any]:
    return {name: v for name, v in cell.items() if name not in ("model", "ask", "pick")}


def train_flops(c: config.Experiment) -> float:
    """All of one run."""
    places = c.train.steps * c.train.batch * c.data.row_length
    return places * c.model.train_flops(c.data.row_length)


@lru_cache(maxsize=1)
def _load(bundle: Path) -> Generator:
    return load(bundle)
