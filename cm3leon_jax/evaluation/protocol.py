"""The protocol of a score: everything besides the model that decides it; and comparisons by it.

Two scores are compared only where their protocols are the same, field by field. Results:

    {"software", "bundle", "suites": {NAME: {"protocol", "scores", "bad"}}}
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cm3leon_jax.checkpoint import write_json


def check_same(own: Mapping[str, Any], other: Mapping[str, Any], where: str) -> None:
    """Raises ValueError naming the first field in which two protocols differ."""
    ours, theirs = dict(flat(own)), dict(flat(other))
    for name in ours | theirs:
        here, there = ours.get(name), theirs.get(name)
        if here != there:
            raise ValueError(f"{name}={here!r}: {where} has {there!r}; use the same to compare")


def open_folder(out: Path, settings: Mapping[str, Any], is_first: bool) -> None:
    """Begins the folder of an evaluation, or goes on with it where it has the same settings."""
    path = out / "settings.json"
    out.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        if is_first:
            write_json(path, settings)
        return
    plain = json.loads(json.dumps(settings))
    check_same(plain, json.loads(path.read_text("utf-8")), str(path))


def read_results(path: Path) -> dict[str, Any]:
    """Raises ValueError for a file of anything else."""
    try:
        found = json.loads(path.read_text("utf-8"))
        for each in found["suites"].values():
            _ = each["protocol"], each["scores"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"against={str(path)!r}: use a results.json of cm3leon evaluate") from None
    return found


def compare(own: Mapping[str, Any], other: Mapping[str, Any], where: str) -> list[list[Any]]:
    """Rows of suite, score, ours, theirs, ours - theirs, for all suites that both have.

    Raises ValueError where the protocols of one differ, or where no suite is in both.
    """
    rows: list[list[Any]] = []
    for suite, ours in own["suites"].items():
        theirs = other["suites"].get(suite)
        if theirs is None:
            continue
        check_same(ours["protocol"], theirs["protocol"], where)
        there = dict(flat(theirs["scores"]))
        for name, value in flat(ours["scores"]):
            if name in there and isinstance(value, int | float):
                rows.append([suite, name, value, there[name], value - there[name]])
    if not rows:
        raise ValueError(f"against={where!r}: use results with one of {list(own['suites'])}")
    return rows


def flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All values by dotted names."""
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
