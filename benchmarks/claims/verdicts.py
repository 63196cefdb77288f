"""What the answers of several seeds say together: means, 95 % intervals, and whether a claim holds.

Shares have Wilson's interval over all answers of all seeds or, where that is wider, the one of
Student's t over seeds. Distances and losses have that of t over seeds, and none from one seed.
Two values of a seed are a pair, of one model or of models that read the same documents in the same
order; their difference often says more than their means.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

from benchmarks.claims.measures import SHARE, unit_of
from benchmarks.claims.parts import Claim, Part, Setup
from benchmarks.claims.work import protocol, read_answer
from cm3leon_jax.evaluation.protocol import check_same
from cm3leon_jax.evaluation.scenes import wilson

SHOWN, OPPOSITE, NOT_SHOWN, NOT_MEASURED = "shown", "the opposite", "not shown", "not measured"


class Found(NamedTuple):
    """A mean, its 95 % interval (None: of one seed there is none), and the value of each seed."""

    mean: float
    low: float | None
    high: float | None
    by_seed: Mapping[int, float]


Table = dict[str, dict[str, Found | None]]  # column, row


def read_table(folder: Path, part: Part, setup: Setup, seeds: int) -> Table:
    """All that has been measured of a part in a source's folder; None where there is nothing yet,
    no row where the answer has no such value.

    Raises ValueError where a value was measured by another protocol than today's.
    """
    table: Table = {}
    for column in part.columns:
        table[column] = {}
        for row in part.rows:
            cell = part.cell(column, row)
            found = {seed: read_answer(folder, cell, seed) for seed in range(seeds)}
            answers = {seed: answer for seed, answer in found.items() if answer is not None}
            for answer in answers.values():
                check_same(protocol(setup, cell["ask"]), answer["protocol"], f"{folder} {column}")
            pick = cell["pick"]
            values = {s: a["values"][pick] for s, a in answers.items() if pick in a["values"]}
            if values or not answers:
                table[column][row] = summarize(values) if values else None
    return table


def summarize(values: Mapping[int, Mapping[str, float]]) -> Found:
    """Of the value of each seed."""
    if "value" in next(iter(values.values())):
        return spread({seed: value["value"] for seed, value in values.items()})
    found = spread({seed: value["right"] / value["count"] for seed, value in values.items()})
    right, count = (sum(value[name] for value in values.values()) for name in ("right", "count"))
    low, high = wilson(right, int(count))
    if found.low is not None and found.high is not None:
        low, high = min(low, max(0.0, found.low)), max(high, min(1.0, found.high))
    return Found(right / count, low, high, found.by_seed)


def spread(by_seed: Mapping[int, float]) -> Found:
    """The mean, and its interval from the spread over seeds."""
    numbers = list(by_seed.values())
    mean = float(np.mean(numbers))
    if len(numbers) < 2:
        return Found(mean, None, None, by_seed)
    error = float(np.std(numbers, ddof=1)) / len(numbers) ** 0.5
    reach = float(student.ppf(0.975, len(numbers) - 1)) * error
    return Found(mean, mean - reach, mean + reach, by_seed)


def difference(one: Found, other: Found) -> Found | None:
    """Of each seed that both have; None where they share none."""
    shared = {s: one.by_seed[s] - other.by_seed[s] for s in one.by_seed if s in other.by_seed}
    return spread(shared) if shared else None


def judge(better: Found | None, worse: Found | None, is_larger_better: bool) -> str:
    """Whether one value is better than another: shown where their intervals do not overlap."""
    if better is None or worse is None:
        return NOT_MEASURED
    if better.low is None or better.high is None or worse.low is None or worse.high is None:
        return NOT_MEASURED
    is_above, is_below = better.low > worse.high, better.high < worse.low
    if not (is_above or is_below):
        return NOT_SHOWN
    return SHOWN if is_above == is_larger_better else OPPOSITE


class Judged(NamedTuple):
    """A claim with both values and the verdict."""

    claim: Claim
    better: Found | None
    worse: Found | None
    verdict: str


def judge_all(part: Part, table: Table, source: str) -> list[Judged]:
    """Every claim of a part."""
    judged = []
    for claim in part.claims:
        is_larger = unit_of(part.columns[claim.column]["ask"], source) == SHARE
        better = table[claim.column][claim.better]
        worse = table[claim.worse_column or claim.column][claim.worse]
        judged.append(Judged(claim, better, worse, judge(better, worse, is_larger)))
    return judged


def total(verdicts: Sequence[str]) -> str:
    """One verdict of a part's claims: that of all of them, or how many are shown or refuted."""
    if len(set(verdicts)) == 1:
        return verdicts[0]
    counts = {verdict: verdicts.count(verdict) for verdict in (SHOWN, OPPOSITE)}
    told = [f"{verdict} for {n} of {len(verdicts)}" for verdict, n in counts.items() if n]
    return ", ".join(told) or (NOT_MEASURED if NOT_MEASURED in verdicts else NOT_SHOWN)
