"""docs/claims.md and its plots, made of the answers in a work directory and nothing else."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.claims import plot
from benchmarks.claims.measures import FD, SIDE, unit_of
from benchmarks.claims.parts import DECODED, MODELS, PARTS, SEEDS, Part, Setup
from benchmarks.claims.verdicts import (
    NOT_MEASURED,
    Found,
    Judged,
    Table,
    difference,
    judge_all,
    read_table,
    summarize,
    total,
)
from benchmarks.claims.work import model_of, read_answer, train_flops
from cm3leon_jax import config
from cm3leon_jax.evaluation.report import write_text

MOST_SEEDS = 16


def write_page(work: Path, docs: Path, setups: Mapping[str, Setup]) -> None:
    """Writes claims.md, and claims_X.svg of each part that has anything measured."""
    docs.mkdir(parents=True, exist_ok=True)
    lines, sections = [], []
    for letter, part in sorted(PARTS.items()):
        sources = [name for name in setups if name in (part.sources or setups)]
        tables = {n: read_table(work / n, part, setups[n], MOST_SEEDS) for n in sources}
        judged = {name: judge_all(part, tables[name], name) for name in sources}
        cells = [_total(judged[name]) if name in sources else "" for name in setups]
        lines.append(_row(f"({letter}) {part.title}", *cells))
        panels = [p for n in sources for p in _panels(part, tables[n], n, setups[n])]
        section = [f"## ({letter}) {part.title}", f"The paper: {part.paper}."]
        section += [_table(part, tables[name], name, setups[name]) for name in sources]
        if panels:
            write_text(docs / f"claims_{letter}.svg", plot.draw(panels))
            section.append(f"![{part.title}](claims_{letter}.svg)")
        section += [_sentence(name, judged[name]) for name in sources]
        sections.append("\n\n".join(section))
    summary = [_row("", *setups), _row("---", *["---"] * len(setups)), *lines]
    page = [_head(work, setups), "\n".join(summary), *sections, _models(setups)]
    write_text(docs / "claims.md", "\n\n".join(page) + "\n")


def _head(work: Path, setups: Mapping[str, Setup]) -> str:
    answers = [json.loads(p.read_text("utf-8")) for p in sorted(work.glob("*/*/answers/*.json"))]
    devices = sorted({answer["device"] for answer in answers}) or ["nothing yet"]
    about = "\n".join(_describe(work / name, setup) for name, setup in setups.items())
    return f"""# The paper's findings at small scale

Written by `python -m benchmarks claims` (`make bench ARGS=claims`) from what it measured; do not
edit. It trains models of about a million parameters, {SEEDS} seeds of each kind, that differ in one
thing, and asks all of them the same. Interrupted, the same command goes on where it was; `--plan`
lists what is missing, `--parts a c`, `--source scenes`, `--seeds 1` and `--budget 60` (minutes) do
less, `--report` only writes this page. Two commands, each with one `--source` and a core of its
own, take two cores better than one that has both sources.

{about}
- Measured on: {", ".join(devices)}; {len(answers)} answers.

Of scenes the share of pictures, captions or answers that are right is told, by analysis by
synthesis ([evaluation.md](evaluation.md)). Emoji have {FD}: the Frechet distance between
the drawn and the real pictures of the same held-out captions, these as decoded from their own
codes, in the averaged last map of EfficientNet-Lite0, which sees them at {SIDE} pixels. It is no
FID and not to be compared with one; less is better. Held-out emoji often have a sibling of another
skin tone in training, which may be among what is retrieved.

Intervals are of 95 %. Of shares: Wilson's over the answers of all seeds, or that of Student's t
over seeds where it is wider; of distances and losses: t over seeds. **Shown** means that the
intervals do not overlap, in the paper's direction; **the opposite**, that they do not in the other
one; **not shown**, that they overlap. Two values of a seed are of one model, or of models that read
the same documents in the same order: "seed by seed" is the mean difference of such pairs, and its
interval of t."""


def _describe(folder: Path, setup: Setup) -> str:
    c, bound = setup.experiment, read_answer(folder, DECODED, 0)
    size, codes, train = c.image_tokenizer.size, c.model.image_tokens, c.train
    pools = f", {setup.pooled} in (c)" if setup.pooled else ""
    told = f"{_cell(summarize({0: bound['values']['']}))}" if bound else NOT_MEASURED
    return (
        f"- **{folder.name}**, {size} x {size} pixels in {codes} codes: {train.steps:,} steps of"
        f" {train.batch} rows of\n  {c.data.row_length} tokens. Up to {setup.count} held-out"
        f" pictures and captions are asked for{pools}. Real\n  pictures, decoded"
        f" from their own codes, against their pixels: {told}."
    )


def _table(part: Part, table: Table, source: str, setup: Setup) -> str:
    """A table of one source; units stand in the head."""
    heads = [f"{name}, {unit_of(how['ask'], source)}" for name, how in part.columns.items()]
    lines = [_row(f"{source}: {part.head}", *heads), _row("---", *["---:"] * len(heads))]
    for row in part.rows:
        cells = (_cell(c[row]) if row in c else "" for c in table.values())
        lines.append(_row(_label(part, row, setup), *cells))
    return "\n".join(lines)


def _label(part: Part, row: str, setup: Setup) -> str:
    """The row's name; where all rows are models, with what each costs to train."""
    if not part.rows.keys() <= MODELS.keys():
        return row
    return f"{row}, {train_flops(model_of(setup.experiment, row, 0)):.0e} FLOPs"


def _cell(found: Found | None) -> str:
    if found is None:
        return "not measured yet"
    if found.low is None or found.high is None:
        return f"{_number(found.mean)} (one seed)"
    count = len(found.by_seed)
    seeds = "" if count == SEEDS else f", seeds: {count}"
    low, high = _number(found.low), _number(found.high)
    return f"{_number(found.mean)} ({low} to {high}{seeds})"


def _number(value: float) -> str:
    """Shares and losses with three decimals, distances with one."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _sentence(source: str, judged: Sequence[Judged]) -> str:
    told = "; ".join(_clause(one) for one in judged)
    return f"**{source}: {_total(judged)}.** {told[0].upper()}{told[1:]}."


def _clause(one: Judged) -> str:
    """Both values and the verdict; of places in one row the columns are named, else the rows."""
    claim = one.claim
    if claim.worse_column:
        what, places = f"at {claim.better}", (claim.column, claim.worse_column)
    else:
        what, places = claim.column, (claim.better, claim.worse)
    if one.better is None or one.worse is None:
        return f"{what}: {places[0]} before {places[1]} ({NOT_MEASURED} yet)"
    better, worse = (f"{_number(f.mean)} ({at})" for f, at in zip((one.better, one.worse), places))
    return f"{what}: {better} against {worse}, {one.verdict}{_paired(one.better, one.worse)}"


def _paired(better: Found, worse: Found) -> str:
    found = difference(better, worse)
    if found is None or found.low is None or found.high is None:
        return ""
    mean, low, high = (f"{'+' * (x >= 0)}{_number(x)}" for x in found[:3] if x is not None)
    return f" (seed by seed {mean}, {low} to {high})"


def _total(judged: Sequence[Judged]) -> str:
    return total([one.verdict for one in judged])


def _panels(part: Part, table: Table, source: str, setup: Setup) -> list[plot.Panel]:
    """One of each unit of which anything was measured."""
    units: dict[str, dict[str, Mapping[str, Found | None]]] = {}
    for column, how in part.columns.items():
        if any(table[column].values()):
            found = {_label(part, row, setup): cell for row, cell in table[column].items()}
            units.setdefault(unit_of(how["ask"], source), {})[column] = found
    return [
        plot.Panel(f"{source}: {unit}", columns, part.is_curve) for unit, columns in units.items()
    ]


def _models(setups: Mapping[str, Setup]) -> str:
    """What each kind of model is."""
    head = ["model", "what differs", *(f"{name}: parameters, FLOPs" for name in setups)]
    lines = [_row(*head), _row("---", "---", *["---:"] * len(setups))]
    told = {
        "base": "all others differ from it in this",
        "across": "`objective.whole_segment=0.0`, and spans cross `<break>`",
        "tuned": "goes on from `base` for twice its steps, on all tasks",
    }
    for model, changes in MODELS.items():
        what = ", ".join(f"`{name}={value}`" for name, value in changes.items())
        sizes = [_size(setup.experiment, model) for setup in setups.values()]
        lines.append(_row(model, told.get(model, what), *sizes))
    return "## The models\n\n" + "\n".join(lines)


def _size(base: config.Experiment, model: str) -> str:
    """Parameters and FLOPs; nothing where there are no tasks to tune on."""
    if model == "tuned" and not base.data.tasks:
        return ""
    c = model_of(base, model, 0)
    return f"{c.model.parameters:,}, {train_flops(c):.1e}"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
