"""Runs suites and writes what they found: results.json, report.md, report.html, sample grids.

OUT/NAME/              the work of a suite
OUT/NAME/result.json   what it found, and its part of the reports
OUT/NAME.png           some of its pictures, for report.md
OUT/bad.txt            the bad records of all suites

All that is not a suite's own is written anew after each of them, from the results in the folder.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from cm3leon_jax import processes
from cm3leon_jax.checkpoint import write_json
from cm3leon_jax.data.instructions import find_task
from cm3leon_jax.data.pictures import grid, to_png
from cm3leon_jax.decoding.generator import Generator
from cm3leon_jax.evaluation import report
from cm3leon_jax.evaluation.captions import open_scorers
from cm3leon_jax.evaluation.clip_score import bundle_encoders
from cm3leon_jax.evaluation.distances import SUFFIXES, hash_files
from cm3leon_jax.evaluation.inputs import list_files
from cm3leon_jax.evaluation.parts import write_bytes
from cm3leon_jax.evaluation.protocol import (
    check_begun,
    compare,
    flat,
    open_folder,
    protocols,
    read_results,
)
from cm3leon_jax.evaluation.suites import SUITES, Result, Settings
from cm3leon_jax.fields import to_dict
from cm3leon_jax.version import __version__

KEPT = "result.json"
QUESTIONS = ("question", "choice")  # templates


def evaluate_suites(
    generator: Generator, names: Sequence[str], settings: Settings, against: Path | None = None
) -> dict[str, Any] | None:
    """Runs each suite in a folder of its own; the results, or None on all processes but the first.

    A folder goes on where the same call has stopped, and keeps the suites of other calls. Raises
    ValueError where it was begun with other settings, and where `against` has other protocols:
    before a suite draws or writes, as far as they are known by then.
    """
    where, out = str(against), settings.out
    other = None if against is None else read_results(against)
    theirs = {} if other is None else protocols(other, names, where)
    if "captions" in names:
        open_scorers()
    open_folder(out, _describe(generator, settings), processes.is_first())
    for name in names:
        check = partial(check_begun, other=theirs[name], where=where) if name in theirs else None
        found = SUITES[name](generator, replace(settings, out=out / name, check=check))
        if found is not None:
            _keep(out, name, found)
            results = _write_all(out, generator.identity)
    if not processes.is_first():
        return None
    results["suites"] = {name: results["suites"][name] for name in names}
    if other is not None:
        _write_all(out, generator.identity, compare(results, other, where))
    return results


def show(results: Mapping[str, Any], against: Path | None) -> str:
    """The scores as lines of text, beside those of another results.json."""
    if against is not None:
        rows = compare(results, read_results(against), str(against))
        lines = [["", "", "this", "other", "difference"], *rows]
    else:
        lines = [[name, *row] for name, one in results["suites"].items() for row in _scores(one)]
    return "\n".join("  ".join(_cell(value) for value in line) for line in lines)


def _keep(out: Path, name: str, found: Result) -> None:
    """Writes what one suite found, and its part of the reports, with a grid of its pictures."""
    scores = [[key, value] for key, value in flat(found.scores)]
    protocol = [[key, json.dumps(value)] for key, value in flat(found.protocol)]
    html = report.section(
        name,
        report.table(("score", "value"), scores),
        report.cards(found.cards),
        report.table(("protocol", ""), protocol),
    )
    markdown = [f"## {name}\n", _table(("score", "value"), scores)]
    if found.cards:
        pictures = [picture for several, _ in found.cards for picture in several]
        write_bytes(out / f"{name}.png", to_png(grid(pictures, 8)))
        markdown.append(f"![{name}]({name}.png)\n")
        markdown += [f"{n}. {_plain(text)}" for n, (_, text) in enumerate(found.cards, start=1)]
    markdown += ["", _table(("protocol", ""), protocol)]
    about = {"protocol": found.protocol, "scores": found.scores, "bad": found.bad}
    write_json(out / name / KEPT, about | {"html": html, "markdown": "\n".join(markdown)})


def _write_all(out: Path, bundle: str, rows: Sequence[Sequence[Any]] = ()) -> dict[str, Any]:
    """results.json, bad.txt, report.html with everything inside and report.md, of all suites that
    are done; returns the results. rows: of a comparison."""
    done = {name: out / name / KEPT for name in SUITES if (out / name / KEPT).exists()}
    kept = {name: json.loads(path.read_text("utf-8")) for name, path in done.items()}
    suites = {
        name: {"protocol": one["protocol"], "scores": one["scores"], "bad": len(one["bad"])}
        for name, one in kept.items()
    }
    results = {"software": f"cm3leon_jax {__version__}", "bundle": bundle, "suites": suites}
    write_json(out / "results.json", results)
    bad = [f"{name}: {reason}\n" for name, one in kept.items() for reason in one["bad"]]
    report.write_text(out / "bad.txt", "".join(bad))
    head = f"Evaluation of bundle {bundle}"
    html, markdown = [], [f"# {head}\n"]
    if rows:
        names = ("suite", "score", "this", "other", "difference")
        html.append(report.section("Against another bundle", report.table(names, rows)))
        markdown += ["## Against another bundle\n", _table(names, rows)]
    html += [one["html"] for one in kept.values()]
    markdown += [one["markdown"] for one in kept.values()]
    report.write_text(out / "report.html", report.page(head, html))
    report.write_text(out / "report.md", "\n".join(markdown))
    return results


def list_suites(generator: Generator, settings: Settings) -> list[str]:
    """Those that `all` stands for: what the bundle and the settings have all inputs for. Datasets
    of questions have no captions."""
    asks = find_task(settings.data.task).template in QUESTIONS
    has_inputs = {
        "coco_fid": not asks and bool(generator.clip or settings.encoders or settings.network),
        "captions": not asks,
        "vqa": asks,
        "scenes": generator.experiment.data.source == "scenes",
    }
    return [name for name in SUITES if has_inputs.get(name, True)]


def _describe(generator: Generator, settings: Settings) -> dict[str, Any]:
    """What a folder may not be shared by two of. Which suites run may change."""
    plain = ("split", "count", "seed", "documents", "candidates", "style", "explain")
    reference, encoders = settings.reference, settings.encoders or bundle_encoders(generator)
    if reference is not None:
        is_folder = reference.is_dir()
        files = list_files(reference, SUFFIXES) if is_folder else [reference]
    return {
        "bundle": generator.identity,
        **{name: getattr(settings, name) for name in plain},
        "data": to_dict(settings.data),
        "experiment": to_dict(generator.experiment),
        "reference": reference and hash_files(files),
        "network": settings.network and settings.network.name,
        "encoders": encoders and encoders.name,
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
