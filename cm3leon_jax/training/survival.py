"""What ends a run early, and what that costs: termination, hanging, goodput."""

import faulthandler
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils


class Termination:
    """Hears SIGTERM, which clusters send some seconds before they take a machine away.

    Several processes agree through JAX's preemption service on one step that all of them reach,
    whichever of them got the signal; its handler was installed when they joined.
    """

    def __enter__(self) -> "Termination":
        self._asked, self._before = False, None
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and not jax.distributed.is_initialized():
            self._before = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def is_due(self, step: int) -> bool:
        """Whether the run ends behind this step; every process asks at every step."""
        if jax.distributed.is_initialized():
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    def _hear(self, *_: Any) -> None:
        self._asked = True


class HangLimit:
    """Ends the process, all stacks printed, when no step has finished for `seconds`; 0: never.

    The end is exit code 1, without clean-up, from a thread of C: it needs nothing of what hangs.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds

    def __enter__(self) -> "HangLimit":
        self.restart()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._stop()

    def restart(self) -> None:
        """A step has finished."""
        if self._seconds:
            faulthandler.dump_traceback_later(self._seconds, exit=True, file=2)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around what may take longer than steps: a save, which has limits of its own, a sample."""
        self._stop()
        yield
        self.restart()

    def _stop(self) -> None:
        if self._seconds:
            faulthandler.cancel_dump_traceback_later()


class Goodput:
    """The share of the program's time that went into training steps, through all restarts.

    Not counted as training: start, restore, each program's first step, which compiles, saves,
    samples, and steps that a kill has lost. Waiting for data within a step is.
    """

    def __init__(self, lived: float = 0.0, clock: Callable[[], float] = time.monotonic):
        """lived: seconds of the programs before this one, as their log knows them."""
        self.trained = 0.0
        self.steps = 0  # whose seconds are in `trained`, of this program
        self._lived, self._clock = lived, clock
        self._began = clock()
        self._since: float | None = None  # the end of the step before, or of a pause

    @property
    def lived(self) -> float:
        """Seconds of this program and those before it."""
        return self._lived + self._clock() - self._began

    @property
    def share(self) -> float:
        """trained / lived."""
        return self.trained / self.lived if self.lived else 0.0

    def resume(self, trained: float, lived: float) -> None:
        """Takes over what a checkpoint knows; its programs lived at least that long."""
        self.trained, self._lived = trained, max(self._lived, lived)

    def so_far(self) -> dict[str, float]:
        """What `resume` takes."""
        return {"trained": self.trained, "lived": self.lived}

    def step(self) -> None:
        """A step has finished."""
        self.steps += self._since is not None
        self._count()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around what is no training."""
        self._count()
        yield
        self._since = self._clock()

    def _count(self) -> None:
        now = self._clock()
        if self._since is not None:
            self.trained += now - self._since
        self._since = now
