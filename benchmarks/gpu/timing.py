"""Times, waits of the host, operators and memory of a piece of work, on a GPU or a CPU."""

import statistics
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from asyncdiff.callbacks.phase_timer import CudaClock, WallClock
from benchmarks.gpu.runner import free_memory

Run = Callable[[], Any]
SHORTEST = 0.005  # seconds of one sample: shorter work is repeated within a sample
OWN = ("/asyncdiff/", "/datamodules/", "/lightning/", "/benchmarks/")  # where waits are looked for, by file and line
FREE = ("empty", "_unsafe_view", "detach")  # operators without a kernel
COPIES = "/asyncdiff/devices.py"  # waits belong to what asks it for a copy
MEASURING = Path(__file__).parent
ROOT = MEASURING.parents[1]


@dataclass(frozen=True)
class Seconds:
    """Seconds of one call.

    Attributes:
        median: median over the samples.
        spread: half of the interquartile range.
        count: number of samples.
    """

    median: float
    spread: float
    count: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Seconds":
        """Return the statistics of samples."""
        low, _, high = statistics.quantiles(samples, n=4) if len(samples) > 1 else [samples[0]] * 3
        return cls(statistics.median(samples), (high - low) / 2, len(samples))

    def columns(self) -> dict[str, Any]:
        """Return the columns of a table."""
        return {"ms": 1000 * self.median, "± ms": 1000 * self.spread, "samples": self.count}


def clock_of(device: torch.device) -> WallClock:
    """Return the clock of a device: CUDA events, or the host's."""
    return CudaClock() if device.type == "cuda" else WallClock()


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished all work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def medians(
    runs: Mapping[str, Run], device: torch.device, seconds: float, *, least: int = 3, most: int = 50
) -> dict[str, Seconds]:
    """Return the time of every piece of work: medians over interleaved rounds, whose order rotates.

    Args:
        runs: pieces of work by name; those that run out of memory are left out.
        device: device that they run on.
        seconds: time for all rounds, after the two calls of each that warm up.
        least: smallest number of rounds, even if they take longer.
        most: largest number of rounds.
    """
    clock = clock_of(device)
    repeats = {name: count for name, run in runs.items() if (count := _repeats(run, clock))}
    samples: dict[str, list[float]] = {name: [] for name in repeats}
    names, number, spent = list(repeats), 0, 0.0
    while names and number < most and (number < least or spent < seconds):
        laps = []
        for place in range(len(names)):
            name = names[(number + place) % len(names)]
            start = clock.now()
            for _ in range(repeats[name]):
                runs[name]()
            laps.append((name, start, clock.now()))
        for name, start, end in laps:
            took = clock.seconds(start, end)
            spent += took
            samples[name].append(took / repeats[name])
        number += 1
    return {name: Seconds.of(values) for name, values in samples.items()}


def _repeats(run: Run, clock: WallClock) -> int:
    """Warm up with two calls; return the number of calls of one sample, 0 if the memory does not suffice."""
    with suppress(torch.OutOfMemoryError):
        run()
        start = clock.now()
        run()
        return max(1, round(SHORTEST / max(clock.seconds(start, clock.now()), 1e-6)))
    free_memory()  # once the error is gone, whose traceback holds tensors
    return 0


def largest(sizes: Sequence[int], run: Callable[[int], Any]) -> int:
    """Return the first size for which `run` does not run out of memory; raise OutOfMemoryError if there is none."""
    for size in sizes[:-1]:
        with suppress(torch.OutOfMemoryError):
            run(size)
            return size
        free_memory()  # once the error is gone, whose traceback holds tensors
    run(sizes[-1])
    return sizes[-1]


def peak_memory(run: Run, device: torch.device) -> dict[str, float]:
    """Return the peak of the allocated memory during a call as a column, on a GPU only."""
    if device.type != "cuda":
        return {}
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return {"peak, GiB": torch.cuda.max_memory_allocated(device) / 2**30}


class _Operators(TorchDispatchMode):
    """Counts operators that compute something."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view and not any(word in func.__name__ for word in FREE)
        return func(*args, **(kwargs or {}))


def operators(run: Run) -> int:
    """Return the number of operators of a call, each of which is at least one kernel on a GPU; views do not count."""
    with _Operators() as mode:
        run()
    return mode.count


@dataclass
class Waits:
    """Waits of the host for a GPU.

    Attributes:
        places: number of waits by FILE:LINE of the innermost frame of this repository or of Lightning.
        step: number of the current step. An event of an earlier step may be waited for: later work is queued already.
    """

    places: Counter[str] = field(default_factory=Counter)
    step: int = 0

    @property
    def count(self) -> int:
        """Number of all waits."""
        return self.places.total()

    def add(self, what: str) -> None:
        """Count a wait where the program is now."""
        self.places[f"{what} in {_place(sys._getframe(1))}"] += 1

    def listed(self) -> str:
        """Return the places and their numbers of waits."""
        return "; ".join(f"{count}x {place}" for place, count in self.places.most_common()) or "none"


@contextmanager
def counted_waits(device: torch.device) -> Iterator[Waits]:
    """Count where the host waits for a GPU: synchronizing operations, synchronize, and events of the current step.

    PyTorch's debug mode reports the first kind, with a warning each. On a CPU nothing is counted.
    """
    waits = Waits()
    if device.type != "cuda":
        yield waits
        return
    event, synchronized, show = torch.cuda.Event, torch.cuda.synchronize, warnings.showwarning
    recorded, waited = event.record, event.synchronize

    def showwarning(message: Any, *where: Any, **options: Any) -> None:
        if "synchronizing CUDA operation" in str(message):
            waits.add("operation")
        elif "debug mode is a prototype" not in str(message):
            show(message, *where, **options)

    def record(self: Any, *args: Any, **options: Any) -> None:
        self.recorded_in = waits.step
        recorded(self, *args, **options)

    def wait_for_event(self: Any) -> None:
        if getattr(self, "recorded_in", None) == waits.step and not self.query():
            waits.add("event")
        waited(self)

    def wait_for_all(*args: Any, **options: Any) -> None:
        waits.add("synchronize")
        synchronized(*args, **options)

    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("always", ".*synchronizing CUDA operation")
        stack.enter_context(mock.patch.object(warnings, "showwarning", showwarning))
        stack.enter_context(mock.patch.object(event, "record", record))
        stack.enter_context(mock.patch.object(event, "synchronize", wait_for_event))
        stack.enter_context(mock.patch.object(torch.cuda, "synchronize", wait_for_all))
        before = torch.cuda.get_sync_debug_mode()
        stack.callback(torch.cuda.set_sync_debug_mode, before)
        torch.cuda.set_sync_debug_mode("warn")
        yield waits


def _place(frame: FrameType | None) -> str:
    """Return FILE:LINE of the innermost frame that may have caused a wait."""
    while frame is not None:
        file = frame.f_code.co_filename
        if any(part in file for part in OWN) and Path(file).parent != MEASURING and not file.endswith(COPIES):
            return f"{file.split('/site-packages/')[-1].removeprefix(f'{ROOT}/')}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"
