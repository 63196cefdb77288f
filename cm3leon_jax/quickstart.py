"""From pictures to pictures with one command: every stage, the scores, one report.

With `data.tasks` the pretrained model is tuned on them: `pretraining/` is then the work directory
of the first model, `tasks/` has the documents of the tasks, and all else is the second model's.
"""

import json
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cm3leon_jax import config, picture_stages, presets, stages
from cm3leon_jax.checkpoint import write_json
from cm3leon_jax.data.collection import Collection, collect
from cm3leon_jax.data.prepare import prepare
from cm3leon_jax.data.shards import Shards
from cm3leon_jax.data.sources import tasks_with_records
from cm3leon_jax.decoding.generator import Generator, load
from cm3leon_jax.evaluation import report, scene_tasks
from cm3leon_jax.evaluation.run import MEASURES, Evaluation, evaluate
from cm3leon_jax.fields import to_dict, to_flat
from cm3leon_jax.training.metrics import read_metrics

SCORED = 512  # held-out captions
ASKED = 256  # held-out requests of each task
SHOWN = 24
PRETRAINING = "pretraining"  # folder of the model that is tuned afterwards
TRAINING = (
    *("text tokenizer", "image tokenizer", "retriever"),
    *("transformer", "instruction tuning"),
)
NETWORKS = ("image_tokenizer", "retriever", "transformer")
CURVES = {
    "Transformer: loss in nats per token": ("transformer", "text_loss", "image_loss"),
    "Transformer: held-out loss": ("transformer", "held_out_text_loss", "held_out_image_loss"),
    "Transformer: what retrieved documents are worth, nats per token": (
        "transformer",
        "retrieval_gain",
    ),
    "Instruction tuning: loss in nats per token": ("instruction tuning", "text_loss", "image_loss"),
    "Retriever: recall among held-out pairs": ("retriever", "image_to_text", "text_to_image"),
    "Image tokenizer: PSNR in dB": ("image_tokenizer", "psnr", "held_out_psnr"),
}


def quickstart(experiment: config.Experiment, workdir: Path) -> dict[str, Any]:
    """Runs what is not done yet and writes report.html and results.json; returns the results."""
    clock = Clock(workdir / "seconds.json")
    with clock("read"):
        collection = collect(experiment.data, experiment.image_tokenizer.size)
    has_tasks = bool(experiment.data.tasks)
    run = workdir / PRETRAINING if has_tasks else workdir
    bundle = _pretrain(experiment, collection, run, clock)
    if has_tasks:
        bundle = _tune(experiment, run, workdir, clock)
    with clock("evaluation"):
        generator = load(bundle)
        counts = range(experiment.retrieval.most + 1)
        by_count = [evaluate(generator, collection, "held_out", SCORED, 0, n) for n in counts]
        trained = evaluate(generator, collection, "train", SHOWN)
        gain = stages.measure_gain(experiment, run, generator.transformer, SCORED)
        tasks = _evaluate_tasks(generator, experiment.data)
    held_out = by_count[experiment.decode.documents]
    folders = {name: run / name for name in NETWORKS}
    if has_tasks:
        folders["instruction tuning"] = workdir / "transformer"
    logs = {name: read_metrics(folder) for name, folder in folders.items() if folder.exists()}
    results = {
        "held_out": held_out.scores,
        "held_out_by_documents": {n: found.scores for n, found in zip(counts, by_count)},
        "retrieval_gain": gain and gain._asdict(),
        "trained_on": trained.scores,
        "tasks": {name: result.score() for name, result in tasks.items()},
        "documents": {side: len(Shards(run / "documents", side)) for side in ("train", "held_out")},
        "skipped": len((run / "documents" / "skipped.txt").read_text().splitlines()),
        "licenses": json.loads((run / "documents" / "licenses.json").read_text()),
        "parameters": experiment.model.parameters,
        "last": {name: {k: v[-1][1] for k, v in log.items()} for name, log in logs.items()},
        "seconds": clock.seconds,
        "config": to_dict(experiment),
    }
    write_json(workdir / "results.json", results)
    page = _page(experiment, workdir, results, logs, by_count, trained, tasks)
    report.write_text(workdir / "report.html", page)
    return results


def _pretrain(
    experiment: config.Experiment, collection: Collection, workdir: Path, clock: "Clock"
) -> Path:
    """The stages of one experiment; returns the bundle."""
    stages.open_workdir(experiment, workdir)
    with clock("text tokenizer", workdir / "text.model"):
        stages.train_text_tokenizer(experiment, collection, workdir)
    with clock("image tokenizer", workdir / "image_tokenizer" / "network"):
        picture_stages.train_image_tokenizer(experiment, collection, workdir)
    if experiment.retrieval.most:
        with clock("retriever", workdir / "retriever" / "network"):
            picture_stages.train_retriever(experiment, collection, workdir)
    with clock("documents", workdir / "documents" / "skipped.txt"):
        prepare(experiment, workdir)
    if experiment.retrieval.most:
        with clock("neighbours", workdir / "neighbours" / "held_out.json"):
            stages.retrieve(experiment, workdir)
    with clock("transformer", workdir / "bundle"):
        return stages.train_transformer(experiment, workdir)


def _tune(experiment: config.Experiment, run: Path, workdir: Path, clock: "Clock") -> Path:
    """The same model, on from where the run left it, tuned on `data.tasks`."""
    with clock("documents of tasks", workdir / "bundle"):
        stages.prepare_tasks(experiment, workdir / "tasks", run)
    tuned = _tuned(experiment, run, workdir)
    stages.open_workdir(tuned, workdir)
    with clock("instruction tuning", workdir / "bundle"):
        return stages.train_transformer(tuned, workdir)


def _tuned(experiment: config.Experiment, run: Path, workdir: Path) -> config.Experiment:
    mixture = stages.mixture_of_tasks(experiment.data, workdir / "tasks", run)
    changes = {"data.mixture": mixture, "train.start_from": str(run)}
    return config.replace(presets.tuned(experiment), changes)


def _evaluate_tasks(generator: Generator, data: config.Data) -> dict[str, scene_tasks.Result]:
    """Those of the instruction tasks whose answers can be judged, where any were trained on."""
    if data.source != "scenes" or not data.tasks:
        return {}
    known = scene_tasks.of_templates(("plain", *data.tasks))
    return {name: scene_tasks.evaluate_task(generator, name, data, ASKED) for name in known}


class Clock:
    """Seconds by stage in a file, so that those of an interrupted stage add up."""

    def __init__(self, path: Path):
        self._path = path
        self.seconds: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    @contextmanager
    def __call__(self, stage: str, result: Path | None = None) -> Iterator[None]:
        """Times a stage; one whose result is there already costs nothing."""
        is_done = result is not None and result.exists()
        print(f"== {stage}{': done before' if is_done else ''}", flush=True)
        start = time.perf_counter()
        try:
            yield
        finally:
            before = self.seconds.get(stage, 0.0) if result is not None else 0.0
            if not is_done:
                self.seconds[stage] = round(before + time.perf_counter() - start, 1)
            if self._path.parent.exists():
                write_json(self._path, self.seconds)


def stage_commands(experiment: config.Experiment, workdir: Path) -> list[str]:
    """One command per stage that make the same again in another folder."""
    data, again = experiment.data, Path(f"{workdir}-again")
    run = again / PRETRAINING if data.tasks else again
    folder, bundle = shlex.quote(str(run)), shlex.quote(f"{again}/bundle")
    retrieves = experiment.retrieval.most > 0
    commands = [
        f"cm3leon tokenizer text {_recipe(experiment)} --workdir {folder}",
        f"cm3leon tokenizer image --workdir {folder}",
        *([f"cm3leon train --stage retriever --workdir {folder}"] if retrieves else []),
        f"cm3leon prepare --workdir {folder}",
        *([f"cm3leon retrieve --workdir {folder}"] if retrieves else []),
        f"cm3leon train --workdir {folder}",
    ]
    if data.tasks:
        commands += [
            f"cm3leon prepare {_recipe(stages.for_one_task(experiment, task, run))}"
            f" --workdir {shlex.quote(str(again / 'tasks' / task))}"
            for task in tasks_with_records(data)
        ]
        tuned = _tuned(experiment, run, again)
        commands.append(f"cm3leon train {_recipe(tuned)} --workdir {shlex.quote(str(again))}")
    return [
        *commands,
        f"cm3leon evaluate {bundle} --data {shlex.quote(data.source)}",
        f'cm3leon sample {bundle} "..." --n 8 --out grid.png',
    ]


def _recipe(experiment: config.Experiment) -> str:
    """The options that name an experiment of the quickstart's preset for its source."""
    source = experiment.data.source
    usual, here = to_flat(presets.for_source(source)), to_flat(experiment)
    changes = [f"--config.{name}={here[name]}" for name in here if here[name] != usual[name]]
    return shlex.join(["--config", presets.name_for_source(source), "--data", source, *changes])


def _page(
    experiment: config.Experiment,
    workdir: Path,
    results: Mapping[str, Any],
    logs: Mapping[str, Any],
    by_count: Sequence[Evaluation],
    trained: Evaluation,
    tasks: Mapping[str, scene_tasks.Result],
) -> str:
    held_out = by_count[experiment.decode.documents]
    seconds = results["seconds"]
    minutes = sum(seconds.get(stage, 0) for stage in TRAINING) / 60
    summary = (
        f"{results['parameters']:,} parameters, trained from nothing on"
        f" {results['documents']['train']:,} documents in {minutes:.1f} minutes. Held-out documents"
        " are chosen by a hash of their id and are never trained on."
    )
    if experiment.data.source == "emoji":
        summary += (
            " Many held-out emoji have a sibling of another skin tone in training; the others show"
            " things that the model has never seen."
        )
    captions = [
        ([image], f"{text} (true: {truth})")
        for image, text, truth in zip(held_out.truths, held_out.captions, held_out.prompts)
    ]
    drawings = [
        report.curves(title, {name: logs[folder].get(name, []) for name in names})
        for title, (folder, *names) in CURVES.items()
        if folder in logs
    ]
    return report.page(
        f"CM3Leon quickstart: {Path(experiment.data.source).name}",
        [
            report.paragraph(summary),
            report.section(
                "Scores on held-out documents, by the number of retrieved documents in front",
                report.table(*_score_table(by_count)),
                report.paragraph(_describe(results["retrieval_gain"])),
                *(report.paragraph(f"{name}: {meaning}") for name, meaning in MEASURES.items()),
            ),
            *_task_sections(tasks),
            report.section(
                "Reconstructions: original, then decoded from its codes",
                _cards(held_out, held_out.reconstructions),
            ),
            report.section(
                "Text to image, held-out captions: the real picture, then the drawn one",
                _cards(held_out, held_out.drawn),
            ),
            report.section(
                "Text to image, captions from training: the real picture, then the drawn one",
                _cards(trained, trained.drawn),
            ),
            report.section(
                "Image to text, held-out pictures: what the model says",
                report.cards(captions[:SHOWN]),
            ),
            report.section("Curves", *drawings),
            report.section(
                "The same again, stage by stage",
                report.commands(stage_commands(experiment, workdir)),
                report.table(("stage", "seconds"), list(seconds.items())),
            ),
        ],
    )


def _task_sections(tasks: Mapping[str, scene_tasks.Result]) -> list[str]:
    """A table of the tasks' scores, and of each task what was asked, answered and wanted."""
    if not tasks:
        return []
    scores = ((name, result.score()) for name, result in tasks.items())
    rows = [(n, f"{s['mean']:.3f} ({s['low']:.3f} to {s['high']:.3f})") for n, s in scores]
    heading = f"Tasks on held-out scenes, {ASKED} requests each"
    sections = [report.section(heading, report.table(("task", "right"), rows))]
    for name, result in tasks.items():
        heading = f"{name.capitalize()}: asked, answered, true"
        sections.append(report.section(heading, report.cards(result.cards()[:SHOWN])))
    return sections


def _cards(evaluation: Evaluation, made: NDArray[np.uint8]) -> str:
    triples = zip(evaluation.truths, made, evaluation.prompts)
    return report.cards([([truth, image], text) for truth, image, text in triples][:SHOWN])


def _score_table(by_count: Sequence[Evaluation]) -> tuple[list[str], list[list[object]]]:
    """Head and rows: a measure, then its value for 0, 1, ... retrieved documents."""
    columns = [dict(_values(evaluation.scores)) for evaluation in by_count]
    head = ["measure", *(f"{n} document{'s' * (n != 1)}" for n in range(len(columns)))]
    return head, [[name, *(column[name] for column in columns)] for name in columns[0]]


def _values(scores: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in scores.items():
        label = f"{prefix}{name}".replace("_", " ")
        if not isinstance(value, Mapping):
            yield label, value
        elif "mean" in value:
            yield label, f"{value['mean']:.3f} ({value['low']:.3f} to {value['high']:.3f})"
        else:
            yield from _values(value, f"{label}: ")


def _describe(gain: Mapping[str, float] | None) -> str:
    if gain is None:
        return "No held-out document has retrieved ones in front of it."
    return (
        f"retrieval gain: {gain['gain']:.3f} nats per token ({gain['low']:.3f} to"
        f" {gain['high']:.3f}) over {gain['documents']} held-out documents; their own loss is"
        f" {gain['with_documents']:.3f} behind retrieved documents and"
        f" {gain['without_documents']:.3f} alone. Intervals are of 95 %."
    )
