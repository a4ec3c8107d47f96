"""Time the phases of a training step, on the host or on an asynchronous CUDA device."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

Timestamp = Any  # a point in time, in the format of its clock


class WallClock:
    """Clock of the host."""

    def now(self) -> Timestamp:
        """Take a timestamp, without synchronization."""
        return time.perf_counter()

    def seconds(self, start: Timestamp, end: Timestamp) -> float:
        """Return the seconds between two timestamps; may wait until the device has reached `end`."""
        return float(end - start)


class CudaClock(WallClock):
    """Clock of a CUDA device: a timestamp is the time when the current stream has finished all work queued so far.

    Work on the device thus counts with its run time, not its launch time; work on the host counts only while the device
    waits for it.
    """

    def now(self) -> Timestamp:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: Timestamp, end: Timestamp) -> float:
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000


class PhaseTimer:
    """Sums time by phase; at most one phase runs at a time.

    Args:
        clock: clock that takes a timestamp at every change of phase; differences are computed only in `seconds`.
    """

    def __init__(self, clock: WallClock):
        self.clock = clock
        self._running: tuple[str, Timestamp] | None = None
        self._laps: list[tuple[str, Timestamp, Timestamp]] = []

    def enter(self, phase: str) -> None:
        """End the current phase, if any, and start `phase`."""
        self._running = phase, self._stop()

    def discard(self) -> None:
        """Stop the timer; the time since the last change of phase is not counted."""
        self._running = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Pause the timer; afterwards the interrupted phase continues, if there was one."""
        phase = self._running[0] if self._running else None
        self._stop()
        yield
        if phase is not None:
            self.enter(phase)

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each phase since the last call, without the running one; waits for the device."""
        laps, self._laps = self._laps, []
        sums: defaultdict[str, float] = defaultdict(float)
        for phase, start, end in laps:
            sums[phase] += self.clock.seconds(start, end)
        return sums

    def _stop(self) -> Timestamp:
        now = self.clock.now()
        if self._running is not None:
            self._laps.append((*self._running, now))
            self._running = None
        return now
