"""What is known of chips: peaks, and programs that are kept between two starts."""

import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from cm3leon_jax import processes
from cm3leon_jax.chips import CHIPS, chip_of, peak_flops
from cm3leon_jax.training.metrics import Log, read_metrics
from cm3leon_jax.training.survival import Goodput

KEPT = """
import sys
from pathlib import Path
import jax
from cm3leon_jax import processes
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name.endswith("cache_hits")))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.default_backend = lambda: "gpu"
processes.keep_compiled(Path(sys.argv[1]))
jax.jit(lambda x: x * 3 + 1)(2.0)
print(sum(hits))
"""


def mesh_of(kind: str, count: int) -> SimpleNamespace:
    devices = np.array([SimpleNamespace(device_kind=kind)] * count)
    return SimpleNamespace(devices=devices, size=count)


def test_the_peak_of_a_mesh_is_that_of_its_chips():
    assert peak_flops(mesh_of("TPU v5 lite", 4)) == 4 * 197e12
    assert peak_flops(mesh_of("NVIDIA H100 80GB HBM3", 2)) == 2 * 989e12
    assert peak_flops(mesh_of("cpu", 8)) is None
    assert [chip_of(chip.kind) for chip in CHIPS.values()] == [*CHIPS.values()]


@pytest.mark.parametrize("peak", [1000.0, None])
def test_mfu_is_the_share_of_the_peaks_rate(tmp_path, peak):
    now = iter(float(n) for n in range(1000))
    log = Log(tmp_path, 0, 8, 4, "tokens", Goodput(clock=lambda: next(now)), peak=peak)
    for step in range(1, 9):
        log.add(step, {"loss": 1.0, "tokens": 50.0})
    log.close()
    curves = read_metrics(tmp_path)
    if peak is None:
        assert "mfu" not in curves
    else:  # a second a step by this clock
        assert curves["mfu"][-1] == (8, pytest.approx(50 / 1000))


def test_what_was_compiled_is_read_again_by_the_next_start(tmp_path):
    def start() -> int:
        arguments = [sys.executable, "-c", KEPT, str(tmp_path / "compiled")]
        names = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
        done = subprocess.run(arguments, env=names, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        return int(done.stdout)

    assert start() == 0
    assert start() > 0


def test_on_cpu_nothing_compiled_is_kept(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    processes.keep_compiled(tmp_path)
    assert jax.config.jax_compilation_cache_dir == before
