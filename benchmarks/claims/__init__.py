"""The paper's findings at small scale: `python -m benchmarks claims`, or `make bench ARGS=claims`.

Nine parts (`parts`), each a table of models and questions on scenes and on emoji of 64 x 64 pixels.
Models and answers are units of work (`work`): each leaves its result under a name of its own in the
work directory, and what is there is never made again. So the command may be stopped at any time and
goes on where it was. At its end it writes docs/claims.md and a plot of each part (`page`). Two
commands, one with `--source scenes` and one with `--source emoji`, each on a core of its own, take
two cores better than one command that has both.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.claims.page import write_page
from benchmarks.claims.parts import PARTS, SEEDS, SETUPS, Setup
from benchmarks.claims.work import Unit, list_units


def main(arguments: Sequence[str], setups: Mapping[str, Setup] = SETUPS) -> None:
    """Makes the units that are missing, in the order of `PARTS`, then the page of all there are."""
    parser = argparse.ArgumentParser("python -m benchmarks claims", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/claims"), help="work directory")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where the page goes")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--source", nargs="+", choices=setups, default=list(setups))
    parser.add_argument("--seeds", type=int, default=SEEDS, help="models of each kind")
    parser.add_argument("--budget", type=float, help="minutes after which no unit is begun")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--plan", action="store_true", help="only list what is missing, with minutes")
    mode.add_argument("--report", action="store_true", help="only write the page of what is there")
    given = parser.parse_args(arguments)
    if given.seeds < 1:
        parser.error(f"--seeds {given.seeds}: train at least 1 model of each kind")
    wanted = {name: setups[name] for name in given.source}
    units = list_units(given.work, wanted, given.parts, given.seeds)
    missing = [unit for unit in units if not unit.result.exists()]
    if given.plan:
        print(describe_plan(missing, len(units)))
        return
    if not given.report:
        make_units(missing, given.budget)
    write_page(given.work, given.docs, setups)


def make_units(missing: Sequence[Unit], budget: float | None) -> None:
    """Makes one unit after the other; none is begun after `budget` minutes."""
    start = time.monotonic()
    for number, unit in enumerate(missing, start=1):
        minutes = (time.monotonic() - start) / 60
        if budget is not None and minutes >= budget:
            print(f"stopped after {minutes:.0f} minutes; the same command goes on", flush=True)
            return
        print(f"== {number}/{len(missing)} after {minutes:.1f} min: {unit.name}", flush=True)
        unit.make()


def describe_plan(missing: Sequence[Unit], count: int) -> str:
    """What is missing, one line a unit, and how long it takes on one core."""
    lines = [f"{unit.seconds / 60:6.1f} min  {unit.name}" for unit in missing]
    minutes = sum(unit.seconds for unit in missing) / 60
    lines.append(f"{minutes:6.1f} min  {len(missing)} of {count} units, estimated")
    return "\n".join(lines)
