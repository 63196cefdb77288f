"""Runs all subjects, or those named, prints their tables and appends them to RESULTS.md.

Some run only where they are named: `claims` (alone) takes hours and has options and a page of its
own; `pools` and `upscale` need what a run has trained, and write pictures of docs/ anew.
"""

import datetime
import importlib
import pkgutil
import sys
from pathlib import Path

import jax

FOLDER = Path(__file__).parent
NAMED_ONLY = ("pools", "upscale")


def main() -> None:
    if sys.argv[1:2] == ["claims"]:
        return importlib.import_module("benchmarks.claims").main(sys.argv[2:])
    names = [module.name for module in pkgutil.iter_modules([str(FOLDER)])]
    known = [name for name in names if not name.startswith("_") and name != "claims"]
    for name in sys.argv[1:] or [name for name in known if name not in NAMED_ONLY]:
        if name not in known:
            sys.exit(f"benchmarks: no subject {name!r}; known: {', '.join(known)}")
        device = jax.devices()[0]
        head = f"\n## {name}, {datetime.date.today()}, {device.device_kind} ({device.platform})\n\n"
        table = importlib.import_module(f"benchmarks.{name}").measure()
        print(head + table)
        with (FOLDER / "RESULTS.md").open("a") as results:
            results.write(head + table + "\n")


if __name__ == "__main__":
    main()
