"""Runs suites and writes what they found: results.json, report.md, report.html, sample grids.

OUT/NAME/           the work of a suite
OUT/NAME.png        some of its pictures, for report.md
OUT/bad.txt         the bad records of all suites
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from cm3leon_jax import processes
from cm3leon_jax.checkpoint import fingerprint, write_json
from cm3leon_jax.data.instructions import find_task
from cm3leon_jax.data.pictures import grid, to_png
from cm3leon_jax.decoding.generator import Generator
from cm3leon_jax.evaluation import report
from cm3leon_jax.evaluation.inputs import write_bytes
from cm3leon_jax.evaluation.protocol import compare, flat, open_folder, read_results
from cm3leon_jax.evaluation.suites import SUITES, Result, Settings
from cm3leon_jax.version import __version__


def evaluate_suites(
    generator: Generator, names: Sequence[str], settings: Settings, against: Path | None = None
) -> dict[str, Any] | None:
    """Runs each suite in a folder of its own; the results, or None on all processes but the first.

    A folder goes on where the same call has stopped. Raises ValueError where it was begun with
    other settings, and where `against` has other protocols.
    """
    other = None if against is None else read_results(against)
    bundle = fingerprint(jax.tree.map(_first_numbers, generator.transformer))
    open_folder(settings.out, _describe(settings, bundle), processes.is_first())
    found: dict[str, Result] = {}
    for name in names:
        result = SUITES[name](generator, replace(settings, out=settings.out / name))
        if result is not None:
            found[name] = result
    if not processes.is_first():
        return None
    suites = {
        name: {"protocol": one.protocol, "scores": one.scores, "bad": len(one.bad)}
        for name, one in found.items()
    }
    results = {"software": f"cm3leon_jax {__version__}", "bundle": bundle, "suites": suites}
    write_json(settings.out / "results.json", results)
    bad = [f"{name}: {reason}\n" for name, one in found.items() for reason in one.bad]
    report.write_text(settings.out / "bad.txt", "".join(bad))
    rows = [] if other is None else compare(results, other, str(against))
    write_reports(settings.out, results, found, rows)
    return results


def show(results: Mapping[str, Any], against: Path | None) -> str:
    """The scores as lines of text, beside those of another results.json."""
    if against is not None:
        rows = compare(results, read_results(against), str(against))
        lines = [["", "", "this", "other", "difference"], *rows]
    else:
        lines = [[name, *row] for name, one in results["suites"].items() for row in _scores(one)]
    return "\n".join("  ".join(_cell(value) for value in line) for line in lines)


def write_reports(
    out: Path,
    results: Mapping[str, Any],
    found: Mapping[str, Result],
    rows: Sequence[Sequence[Any]] = (),
) -> None:
    """report.html, with everything inside, and report.md with a grid of pictures beside it."""
    head = f"Evaluation of bundle {results['bundle']}"
    html, markdown = [], [f"# {head}\n"]
    names = ("suite", "score", "this", "other", "difference")
    if rows:
        html.append(report.section("Against another bundle", report.table(names, rows)))
        markdown += ["## Against another bundle\n", _table(names, rows)]
    for name, one in results["suites"].items():
        scores = _scores(one)
        protocol = [[key, json.dumps(value)] for key, value in flat(one["protocol"])]
        cards = found[name].cards
        html.append(
            report.section(
                name,
                report.table(("score", "value"), scores),
                report.cards(cards),
                report.table(("protocol", ""), protocol),
            )
        )
        markdown += [f"## {name}\n", _table(("score", "value"), scores)]
        if cards:
            pictures = [picture for several, _ in cards for picture in several]
            write_bytes(out / f"{name}.png", to_png(grid(pictures, 8)))
            markdown.append(f"![{name}]({name}.png)\n")
            markdown += [f"{n}. {_plain(text)}" for n, (_, text) in enumerate(cards, start=1)]
        markdown += ["", _table(("protocol", ""), protocol)]
    report.write_text(out / "report.html", report.page(head, html))
    report.write_text(out / "report.md", "\n".join(markdown))


QUESTIONS = ("question", "choice")  # templates


def list_suites(generator: Generator, settings: Settings) -> list[str]:
    """Those that `all` stands for: what the bundle and the settings have all inputs for."""
    has_inputs = {
        "coco_fid": bool(generator.clip or settings.encoders or settings.network),
        "vqa": find_task(settings.data.task).template in QUESTIONS,
        "scenes": generator.experiment.data.source == "scenes",
    }
    return [name for name in SUITES if has_inputs.get(name, True)]


def _first_numbers(array: jax.Array) -> jax.Array:
    return array[(0,) * (array.ndim - 1)][:64]  # enough to tell bundles apart, whatever their size


def _describe(settings: Settings, bundle: str) -> dict[str, Any]:
    """What a folder may not be shared by two of. Which suites run may change."""
    plain = ("split", "count", "seed", "documents", "candidates", "style", "explain")
    return {
        "bundle": bundle,
        "data": settings.data.source,
        **{name: getattr(settings, name) for name in plain},
        "task": settings.data.task,
        "reference": settings.reference and settings.reference.name,
        "network": settings.network and settings.network.name,
        "encoders": settings.encoders and settings.encoders.name,
    }


def _scores(suite: Mapping[str, Any]) -> list[list[Any]]:
    return [[name, value] for name, value in flat(suite["scores"])]


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *([_plain(_cell(v)) for v in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _plain(text: str) -> str:
    """One line, without what Markdown would take for a cell or a tag."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
