"""Time by what it was spent on, on the host or on a CUDA device that runs behind it."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch

Timestamp = Any  # a moment, as the clock at hand notes it


@runtime_checkable
class Clock(Protocol):
    """Notes moments now and says later how far they lie apart."""

    def now(self) -> Timestamp:
        """This moment; waits for nothing."""

    def seconds(self, start: Timestamp, end: Timestamp) -> float:
        """Between two moments; may wait until the second has come."""


class WallClock:
    """The host's time."""

    def now(self) -> float:
        """Seconds since some moment."""
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        """Between two moments."""
        return end - start


class CudaClock:
    """The device's time: a moment is when the current stream has done what it was given until now.

    So work takes as long as it runs, not as long as it takes to launch, and the host's work takes time only where the
    device waits for it.
    """

    def now(self) -> Timestamp:
        """An event in the stream."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: Timestamp, end: Timestamp) -> float:
        """Between two events, once the device has passed both."""
        end.synchronize()
        milliseconds: float = start.elapsed_time(end)
        return milliseconds / 1000


def clock_for(device: torch.device) -> Clock:
    """The clock for work on `device`."""
    return CudaClock() if device.type == "cuda" else WallClock()


class PhaseTimer:
    """Sums time by phase: one phase runs at a time, or the watch stands.

    Args:
        clock: is read at every change of phase; how far these lie apart is asked only in `seconds`.
    """

    def __init__(self, clock: Clock):
        self.clock = clock
        self._running: tuple[str, Timestamp] | None = None
        self._laps: list[tuple[str, Timestamp, Timestamp]] = []

    def enter(self, phase: str) -> None:
        """End the phase that runs, begin `phase`."""
        self._running = phase, self._stop()

    def discard(self) -> None:
        """Stand still; what ran since the last change of phase counts as nothing."""
        self._running = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The watch stands inside and goes on afterwards with the phase that ran before, if any did."""
        phase = self._running[0] if self._running else None
        self._stop()
        yield
        if phase is not None:
            self.enter(phase)

    def seconds(self) -> dict[str, float]:
        """What each phase took since the last call, the one that runs left out; waits for the device."""
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
