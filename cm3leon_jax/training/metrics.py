"""What a run shows: a progress line, TensorBoard, and metrics.jsonl. Fetches one window late.

Metrics stay on the device until the next window is full, so that the host never waits for the
step it has just dispatched.
"""

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

Metrics = Mapping[str, jax.Array]


class Log:
    """Collects the metrics of a run; `every` steps are averaged into one line."""

    def __init__(self, folder: Path, start: int, steps: int, every: int, unit: str):
        """unit: the metric that counts work ('tokens' or 'images'), shown per second."""
        from tensorboardX import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start)
        self._lines = (folder / "metrics.jsonl").open("a")
        if start:
            self._lines.write("\n")  # closes a line that a kill may have cut
        pause = 0.5 if sys.stderr.isatty() else 15  # seconds between two progress lines
        self._bar = tqdm(total=steps, initial=start, unit="step", mininterval=pause)
        self._every, self._unit = every, unit
        self._since = time.perf_counter()
        self._window: list[Metrics] = []
        self._full: tuple[int, list[Metrics]] | None = None

    def add(self, step: int, metrics: Metrics) -> None:
        """Takes the metrics of one step; shows the window before once this one is full."""
        self._window.append(metrics)
        self._bar.update(1)
        if step % self._every == 0 or step == self._bar.total:
            self.flush()
            self._full, self._window = (step, self._window), []

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """Adds a picture, uint8 [Y, X, 3], to TensorBoard."""
        self._board.add_image(name, image, step, dataformats="HWC")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds numbers that the loop computed beside the step, such as held-out losses."""
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        self._lines.write(json.dumps({"step": step, **values}) + "\n")
        self._lines.flush()

    def close(self) -> None:
        self.flush()
        self._bar.close()
        self._board.close()
        self._lines.close()

    def flush(self) -> None:
        """Shows the full window that is still held back, so that a checkpoint has its log."""
        if self._full is None:
            return
        step, window = self._full
        self._full = None
        fetched = jax.device_get(window)
        means = {name: float(np.mean([m[name] for m in fetched])) for name in fetched[0]}
        check_finite(means, step - len(window) + 1, step)
        now = time.perf_counter()
        work = means[self._unit] * len(window) / (now - self._since)
        self._since = now
        shown = {name: f"{means[name]:.3f}" for name in means if name.endswith("loss")}
        self._bar.set_postfix(shown | {f"{self._unit}/s": f"{work:,.0f}"}, refresh=False)
        self.scalars(step, means)


def check_finite(means: Mapping[str, float], first: int, last: int) -> None:
    """Raises FloatingPointError that names the steps and every metric that is NaN or infinite."""
    broken = [name for name, value in means.items() if not math.isfinite(value)]
    if broken:
        raise FloatingPointError(
            f"steps {first} to {last}: {', '.join(broken)} not finite; lower"
            " optimizer.learning_rate or set objective.z_loss, and start again from the checkpoint"
        )


def read_metrics(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Curves from metrics.jsonl: name -> [(step, value)]; of a step written twice the last counts.

    A line that a kill has cut is passed over: its step was done again.
    """
    curves: dict[str, dict[int, float]] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        try:
            values: dict[str, Any] = json.loads(line)
        except json.JSONDecodeError:
            continue
        step = values.pop("step")
        for name, value in values.items():
            curves.setdefault(name, {})[step] = value
    return {name: sorted(points.items()) for name, points in curves.items()}
