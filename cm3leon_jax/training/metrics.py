"""What a run shows: a progress line, TensorBoard, and metrics.jsonl. Fetches one window late.

Metrics stay on the device until the next window is full, so that the host never waits for the
step it has just dispatched; it waits for the one before the last two, so that they never pile up.
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from cm3leon_jax import processes
from cm3leon_jax.training.survival import Goodput

Metrics = Mapping[str, jax.Array | float]

AHEAD = 2  # steps that may be under way on the devices
MOST_IN_A_ROW = 20  # skipped updates: more are no outliers
# What a run was made from is fixed in its work directory.
AGAIN = "train again in another --workdir, the transformer with train.start_from=this one, with"


class Log:
    """Collects the metrics of a run; `every` steps are averaged into one line.

    Of several processes each checks the numbers, which are the same on all, and the first writes.
    """

    def __init__(
        self,
        folder: Path,
        start: int,
        steps: int,
        every: int,
        unit: str,
        goodput: Goodput,
        window: Sequence[Metrics] = (),
        peak: float | None = None,
    ):
        """unit: the metric that counts work ('tokens' or 'images'), shown per second.

        peak: units per second that the devices' peak would do; then their share is shown as mfu.
        window: the steps before `start` that no line has yet, as `settle` gave them.
        """
        self._writes = processes.is_first()
        if self._writes:
            from tensorboardX import SummaryWriter

            folder.mkdir(parents=True, exist_ok=True)
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start)
            self._lines = (folder / "metrics.jsonl").open("a")
            if start:
                self._lines.write("\n")  # closes a line that a kill may have cut
        pause = 0.5 if sys.stderr.isatty() else 15  # seconds between two progress lines
        self._bar = tqdm(
            total=steps, initial=start, unit="step", mininterval=pause, disable=not self._writes
        )
        self._steps, self._every, self._unit = steps, every, unit
        self._peak = peak
        self._goodput, self._since = goodput, (goodput.steps, goodput.trained)
        self._window: list[Metrics] = list(window)
        self._full: tuple[int, list[Metrics], float] | None = None
        self._under_way: list[Metrics] = []

    def add(self, step: int, metrics: Metrics) -> None:
        """Takes the metrics of one step; shows the window before once this one is full.

        Returns when the step before the last two has finished.
        """
        self._window.append(metrics)
        self._under_way.append(metrics)
        if len(self._under_way) > AHEAD:
            jax.block_until_ready(self._under_way.pop(0))
        self._goodput.step()
        self._bar.update(1)
        if step % self._every == 0 or step == self._steps:
            self.flush()
            steps, seconds = (self._goodput.steps, self._goodput.trained)
            rate = (steps - self._since[0]) / max(seconds - self._since[1], 1e-9)
            self._full, self._window = (step, self._window, rate), []
            self._since = steps, seconds

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """Adds a picture, uint8 [Y, X, 3], to TensorBoard."""
        if self._writes:
            self._board.add_image(name, image, step, dataformats="HWC")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds numbers that the loop computed beside the step, such as held-out losses."""
        if self._writes:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
            self._lines.write(json.dumps({"step": step, **values}) + "\n")
            self._lines.flush()

    def close(self) -> None:
        self.flush()
        self._bar.close()
        if self._writes:
            self._board.close()
            self._lines.close()

    def settle(self, step: int) -> list[Metrics]:
        """Waits for `step`, shows and checks all up to it; what fills no window yet is returned.

        So a checkpoint has its log, and none is made of a state that is not finite.
        """
        self.flush()
        self._window = jax.device_get(self._window)
        check_finite(self._window, step)
        self._under_way = []
        return [{name: float(value) for name, value in m.items()} for m in self._window]

    def flush(self) -> None:
        """Shows the full window that is still held back."""
        if self._full is None:
            return
        step, window, rate = self._full
        self._full = None
        fetched = jax.device_get(window)
        check_finite(fetched, step)
        means = mean_metrics(fetched)
        shown = {name: f"{mean:.3f}" for name, mean in means.items() if name.endswith("loss")}
        work = rate * means.get(self._unit, 0)
        shown[f"{self._unit}/s"] = f"{work:,.0f}"
        if self._peak:
            means["mfu"] = work / self._peak
            shown["mfu"] = f"{means['mfu']:.1%}"
        if "skipped" in means:
            shown["skipped"] = f"{means['skipped']:.0f}"
        means |= {"goodput": self._goodput.share, "program_seconds": self._goodput.lived}
        shown["goodput"] = f"{means['goodput']:.0%}"
        self._bar.set_postfix(shown, refresh=False)
        self.scalars(step, means)


def mean_metrics(window: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean of each metric over the steps where it is finite, if any; of counts the last."""
    means = {}
    for name in window[0]:
        values = np.array([metrics[name] for metrics in window], np.float64)
        values = values[-1:] if name.startswith("skipped") else values[np.isfinite(values)]
        if values.size:
            means[name] = float(values.mean())
    return means


def check_finite(window: Sequence[Mapping[str, Any]], last: int) -> None:
    """Raises FloatingPointError that names the first step and every metric that is not finite.

    last: the number of the window's last step. With `optimizer.skip_above` such a step changes
    nothing, and only many in a row are an error.
    """
    first = last - len(window) + 1
    for step, metrics in enumerate(window, first):
        in_a_row = int(metrics.get("skipped_in_a_row", 0))
        if in_a_row > MOST_IN_A_ROW:
            raise FloatingPointError(
                f"steps {step - in_a_row + 1} to {step}: {in_a_row} updates in a row skipped;"
                f" {AGAIN} a higher optimizer.skip_above or a lower optimizer.learning_rate"
            )
        broken = [name for name, value in metrics.items() if not math.isfinite(value)]
        if broken and not in_a_row:
            kinds = [kind for kind in ("text", "image") if f"{kind}_loss" in broken]
            where = f" (in the loss of {' and '.join(kinds)} tokens)" if kinds else ""
            raise FloatingPointError(
                f"step {step} of {first} to {last}: {', '.join(broken)} not finite{where}; {AGAIN}"
                " a lower optimizer.learning_rate or an objective.z_loss"
            )


def seconds_so_far(folder: Path) -> float:
    """Seconds that programs of this run have lived, as far as its log knows."""
    if not (folder / "metrics.jsonl").exists():
        return 0.0
    return max(
        (seconds for _, seconds in read_metrics(folder).get("program_seconds", [])), default=0.0
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
