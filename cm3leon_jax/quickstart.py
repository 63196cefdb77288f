"""From pictures to pictures with one command: every stage, the scores, one report."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cm3leon_jax import config, stages
from cm3leon_jax.checkpoint import write_json
from cm3leon_jax.data.prepare import collect
from cm3leon_jax.decoding.generator import load
from cm3leon_jax.evaluation import report
from cm3leon_jax.evaluation.run import Evaluation, evaluate
from cm3leon_jax.fields import to_dict
from cm3leon_jax.training.metrics import read_metrics

SCORED = 512  # held-out captions
SHOWN = 24


def quickstart(experiment: config.Experiment, workdir: Path) -> dict[str, Any]:
    """Runs what is not done yet and writes report.html and results.json; returns the results."""
    stages.open_workdir(experiment, workdir)
    clock = Clock(workdir / "seconds.json")
    with clock("read"):
        collection = collect(experiment.data, experiment.image_tokenizer.size)
    with clock("text tokenizer"):
        stages.train_text_tokenizer(experiment, collection, workdir)
    with clock("image tokenizer"):
        stages.train_image_tokenizer(experiment, collection, workdir)
    with clock("documents"):
        stages.prepare_documents(experiment, collection, workdir)
    with clock("transformer"):
        bundle = stages.train_transformer(experiment, workdir)
    with clock("evaluation"):
        generator = load(bundle)
        held_out = evaluate(generator, collection.held_out, collection, SCORED)
        trained = evaluate(generator, collection.train, collection, SHOWN)
    results = {
        "held_out": held_out.scores,
        "documents": {"train": len(collection.train), "held_out": len(collection.held_out)},
        "skipped": len(collection.skipped.reasons),
        "parameters": experiment.model.parameters,
        "seconds": clock.seconds,
        "config": to_dict(experiment),
    }
    write_json(workdir / "results.json", results)
    report.write_text(
        workdir / "report.html", _page(experiment, workdir, results, held_out, trained)
    )
    return results


class Clock:
    """Seconds by stage, kept in a file so that they add up over interruptions."""

    def __init__(self, path: Path):
        self._path = path
        self.seconds: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        print(f"== {stage}", flush=True)
        start = time.perf_counter()
        try:
            yield
        finally:
            passed = time.perf_counter() - start
            self.seconds[stage] = round(self.seconds.get(stage, 0.0) + passed, 2)
            write_json(self._path, self.seconds)


def _page(
    experiment: config.Experiment,
    workdir: Path,
    results: Mapping[str, Any],
    held_out: Evaluation,
    trained: Evaluation,
) -> str:
    source = experiment.data.source
    pairs = lambda first, second: [[a, b] for a, b in zip(first, second)]  # noqa: E731
    wanted_drawn = pairs(held_out.truths, held_out.drawn)
    logs = {name: read_metrics(workdir / name) for name in ("image_tokenizer", "transformer")}

    def lines(folder: str, *names: str) -> dict[str, list[tuple[int, float]]]:
        return {name: logs[folder].get(name, []) for name in names}

    seconds = results["seconds"]
    count = results["documents"]["train"]
    return report.page(
        f"CM3Leon quickstart: {Path(source).name}",
        [
            report.paragraph(
                f"{results['parameters']:,} parameters, trained from nothing on {count:,} documents"
                f" in {sum(seconds.values()) / 60:.1f} minutes on this machine. Held-out documents,"
                " chosen by a hash of their id, were never trained on."
            ),
            report.section(
                "Scores on held-out documents",
                report.table(("measure", "value", "95 % interval"), _rows(held_out.scores)),
            ),
            report.section(
                "Reconstructions: original, then decoded from its codes",
                report.cards(_items(pairs(held_out.truths, held_out.reconstructions), held_out)),
            ),
            report.section(
                "Text to image, held-out captions: the real picture, then the drawn one",
                report.cards(_items(wanted_drawn, held_out)),
            ),
            report.section(
                "Text to image, captions from training: the real picture, then the drawn one",
                report.cards(_items(pairs(trained.truths, trained.drawn), trained)),
            ),
            report.section(
                "Image to text, held-out pictures",
                report.cards(
                    [([image], text) for image, text in zip(held_out.truths, held_out.captions)][
                        :SHOWN
                    ]
                ),
            ),
            report.section(
                "Curves",
                report.curves(
                    "Transformer: loss in nats per token",
                    lines("transformer", "text_loss", "image_loss"),
                ),
                report.curves(
                    "Transformer: held-out loss",
                    lines("transformer", "held_out_text_loss", "held_out_image_loss"),
                ),
                report.curves(
                    "Image tokenizer: PSNR in dB", lines("image_tokenizer", "psnr", "held_out_psnr")
                ),
            ),
            report.section(
                "The same in single commands",
                report.commands(stage_commands(workdir)),
                report.table(("stage", "seconds"), list(seconds.items())),
            ),
        ],
    )


def stage_commands(workdir: Path) -> list[str]:
    """One command per stage; they share the config that stands in the work directory."""
    return [
        f"cm3leon tokenizer text --workdir {workdir}",
        f"cm3leon tokenizer image --workdir {workdir}",
        f"cm3leon prepare --workdir {workdir}",
        f"cm3leon train --workdir {workdir}",
        f"cm3leon evaluate {workdir / 'bundle'}",
        f'cm3leon sample {workdir / "bundle"} "..." --n 8 --out grid.png',
    ]


def _items(pictures: list[list[np.ndarray]], evaluation: Evaluation) -> list[Any]:
    return list(zip(pictures, evaluation.prompts))[:SHOWN]


def _rows(scores: Mapping[str, Any], prefix: str = "") -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for name, value in scores.items():
        label = f"{prefix}{name}".replace("_", " ")
        if not isinstance(value, Mapping):
            rows.append((label, value, ""))
        elif "mean" in value:
            rows.append((label, value["mean"], f"{value['low']:.3f} to {value['high']:.3f}"))
        else:
            rows += _rows(value, f"{label}: ")
    return rows
