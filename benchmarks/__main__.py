"""Runs all subjects, or those named, prints their tables and appends them to RESULTS.md.

`claims` takes hours, has options and a page of its own, and runs only where it is the one named.
"""

import datetime
import importlib
import pkgutil
import sys
from pathlib import Path

import jax

FOLDER = Path(__file__).parent


def main() -> None:
    if sys.argv[1:2] == ["claims"]:
        return importlib.import_module("benchmarks.claims").main(sys.argv[2:])
    names = [module.name for module in pkgutil.iter_modules([str(FOLDER)])]
    known = [name for name in names if not name.startswith("_") and name != "claims"]
    for name in sys.argv[1:] or known:
        if name not in known:
            sys.exit(f"benchmarks: no subject {name!r}; known: {', '.join(known)}")
        device = jax.devices()[0]
        head = f"\n## {name}, {datetime.date.today()}, {device.device_kind} ({device.platform})\n\n"
        table = importlib.import_module(f"benchmarks.{name}").measure()
        print(head + table)
        with (FOLDER / "RESULTS.md").open("a") as results:
            results.write(head + table + "\n")


main()
