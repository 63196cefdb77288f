"""What the answers of several seeds say together: means, 95 % intervals, and whether a claim holds.

Shares have Wilson's interval over all answers of all seeds or, where that is wider, the one of
Student's t over seeds. Distances and losses have that of t over seeds, and none from one seed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.claims.measures import SHARE, unit_of
from benchmarks.claims.parts import Claim, Part
from benchmarks.claims.work import read_answer
from cm3leon_jax.evaluation.protocol import check_same
from cm3leon_jax.evaluation.scenes import wilson

SHOWN, OPPOSITE, NOT_SHOWN, NOT_MEASURED = "shown", "the opposite", "not shown", "not measured"
T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # 97.5 % of Student's t, by the number of seeds
NORMAL = 1.96


class Found(NamedTuple):
    """A mean, its 95 % interval (None: of one seed there is none), and the seeds behind it."""

    mean: float
    low: float | None
    high: float | None
    seeds: int


Table = dict[str, dict[str, Found | None]]  # column, row


def read_table(folder: Path, part: Part, seeds: int) -> Table:
    """All that has been measured of a part in a source's folder; None where there is nothing yet,
    no row where the answer has no such value.

    Raises ValueError where values of one column were measured by several protocols.
    """
    table: Table = {}
    for column in part.columns:
        table[column] = {}
        first: dict[str, Any] | None = None
        for row in part.rows:
            cell = part.cell(column, row)
            found = [read_answer(folder, cell, seed) for seed in range(seeds)]
            answers = [answer for answer in found if answer is not None]
            for answer in answers:
                first = first or answer["protocol"]
                check_same(first, answer["protocol"], f"{folder} {column}")
            values = [a["values"][cell["pick"]] for a in answers if cell["pick"] in a["values"]]
            if values or not answers:
                table[column][row] = summarize(values) if values else None
    return table


def summarize(values: Sequence[Mapping[str, float]]) -> Found:
    """Of one value a seed."""
    seeds = len(values)
    if "value" in values[0]:
        numbers = [value["value"] for value in values]
        return Found(float(np.mean(numbers)), *(_spread(numbers) or (None, None)), seeds)
    right, count = (sum(value[name] for value in values) for name in ("right", "count"))
    low, high = wilson(right, int(count))
    if spread := _spread([value["right"] / value["count"] for value in values]):
        low, high = min(low, max(0.0, spread[0])), max(high, min(1.0, spread[1]))
    return Found(right / count, low, high, seeds)


def _spread(numbers: Sequence[float]) -> tuple[float, float] | None:
    """Interval of the mean from the spread over seeds."""
    if len(numbers) < 2:
        return None
    error = float(np.std(numbers, ddof=1)) / len(numbers) ** 0.5
    reach = T.get(len(numbers), NORMAL) * error
    mean = float(np.mean(numbers))
    return mean - reach, mean + reach


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
    """A claim with the row that was taken as the better one, both values, and the verdict."""

    claim: Claim
    row: str
    better: Found | None
    worse: Found | None
    verdict: str


def judge_all(part: Part, table: Table, source: str) -> list[Judged]:
    """Every claim of a part. Of several rows that may be the better one the best is taken."""
    judged = []
    for claim in part.claims:
        is_larger = unit_of(part.columns[claim.column]["ask"], source) == SHARE
        column = table[claim.column]
        rows = (claim.better,) if isinstance(claim.better, str) else claim.better
        sign = 1 if is_larger else -1
        known = {row: sign * found.mean for row in rows if (found := column[row])}
        row = max(known, key=known.__getitem__, default=rows[0])
        worse = table[claim.worse_column or claim.column][claim.worse]
        verdict = judge(column[row], worse, is_larger)
        judged.append(Judged(claim, row, column[row], worse, verdict))
    return judged


def total(verdicts: Sequence[str]) -> str:
    """One verdict of a part's claims: that of all of them, or for how many it is shown."""
    if len(set(verdicts)) == 1:
        return verdicts[0]
    if shown := verdicts.count(SHOWN):
        return f"shown for {shown} of {len(verdicts)}"
    return NOT_MEASURED if NOT_MEASURED in verdicts else NOT_SHOWN
