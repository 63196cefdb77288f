"""The protocol of a score: everything besides the model that decides it; and comparisons by it.

Two scores are compared only where their protocols are the same, field by field. Results:

    {"software", "bundle", "suites": {NAME: {"protocol", "scores", "bad"}}}
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cm3leon_jax.checkpoint import write_json
from cm3leon_jax.fields import require


def check_same(own: Mapping[str, Any], other: Mapping[str, Any], where: str) -> None:
    """Raises ValueError naming the first field in which two protocols differ."""
    ours, theirs = dict(flat(own)), dict(flat(other))
    for name in ours | theirs:
        here, there = ours.get(name), theirs.get(name)
        if here != there:
            raise ValueError(f"{name}={here!r}: {where} has {there!r}; use the same to compare")


def check_begun(own: Mapping[str, Any], other: Mapping[str, Any], where: str) -> None:
    """`check_same` for a protocol that has not all of its fields yet: before the work is done."""
    check_same(own, {name: other.get(name) for name in own}, where)


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


def protocols(
    other: Mapping[str, Any], suites: Iterable[str], where: str
) -> dict[str, Mapping[str, Any]]:
    """Those of other results, of the suites that they have. Raises ValueError where it has none."""
    names = list(suites)
    found = {name: other["suites"][name]["protocol"] for name in names if name in other["suites"]}
    require(bool(found), "against", where, f"use results with one of {names}")
    return found


def compare(own: Mapping[str, Any], other: Mapping[str, Any], where: str) -> list[list[Any]]:
    """Rows of suite, score, ours, theirs, ours - theirs, for all suites that both have.

    Raises ValueError where the protocols of one differ, or where no suite is in both.
    """
    rows: list[list[Any]] = []
    for suite, protocol in protocols(other, own["suites"], where).items():
        ours = own["suites"][suite]
        check_same(ours["protocol"], protocol, where)
        there = dict(flat(other["suites"][suite]["scores"]))
        for name, value in flat(ours["scores"]):
            if name in there and isinstance(value, int | float):
                rows.append([suite, name, value, there[name], value - there[name]])
    return rows


def flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All values by dotted names."""
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
