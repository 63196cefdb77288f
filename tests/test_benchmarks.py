"""The front door of the benchmarks: which subjects are measured where none is named."""

import sys
from types import SimpleNamespace

import pytest

from benchmarks import __main__ as front


@pytest.mark.parametrize(
    ("arguments", "measured"), [([], ["loader", "tiny"]), (["upscale"], ["upscale"])]
)
def test_what_needs_a_trained_run_is_measured_only_where_it_is_named(
    tmp_path, monkeypatch, arguments, measured
):
    for name in ("_visit", "claims", "loader", "pools", "tiny", "upscale"):
        (tmp_path / f"{name}.py").touch()
    names = []

    def load(name):
        names.append(name.removeprefix("benchmarks."))
        return SimpleNamespace(measure=lambda: "| a table |")

    monkeypatch.setattr(front, "FOLDER", tmp_path)
    monkeypatch.setattr(front, "importlib", SimpleNamespace(import_module=load))
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    front.main()
    assert names == measured
    assert (tmp_path / "RESULTS.md").read_text().count("| a table |") == len(measured)
