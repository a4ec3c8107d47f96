"""Profile of training steps: the kernels that take the most time, the share of the modulation, and of idle time."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.conditioning import ONE, TABLE
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.results import Finding
from benchmarks.gpu.runner import Deadline, Measurement
from benchmarks.gpu.timing import synchronize
from benchmarks.gpu.training import LEADING, batch_that_fits, bench_of, sizes

STEPS, TOP = 5, 40
MODULATION = (
    "_Modulate",
    "_ModulateBackward",
    "_Gate",
    "_GateBackward",
)  # of networks/modulation.py


def measurements(machine: Machine) -> Iterator[Measurement]:
    """Yield the profiles: eager ones, in which the modulation has operators of its own, before compiled ones."""
    for compiled in machine.modes:
        for kind in (TABLE, ONE):
            run = partial(profile_steps, kind, compiled, machine)
            yield Measurement(f"{machine.label(LEADING)}, {kind}, {machine.mode(compiled)}", run)


def profile_steps(kind: str, compiled: bool, machine: Machine, deadline: Deadline) -> Finding:
    """Profile training steps."""
    batch = batch_that_fits(LEADING, TABLE, machine)
    bench = bench_of(machine, replace(sizes(machine)[LEADING], batch=batch), compiled)
    for _ in range(3):
        bench.step(kind)
    synchronize(machine.device)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if machine.is_gpu else [])]
    with profile(activities=activities) as profiler:
        for _ in range(STEPS):
            bench.step(kind)
        synchronize(machine.device)
    times = kernel_times(profiler) if machine.is_gpu else operator_times(profiler)
    total = sum(times.values())
    row: dict[str, Any] = {"precision": machine.precision, "batch": batch, "ms per step": total / STEPS / 1000}
    row["share of the modulation, %"] = 100 * modulation(profiler, machine) / max(total, 1e-9)
    row["idle, %"] = 100 * idle(profiler) if machine.is_gpu else "not on this device"
    row["kernels" if machine.is_gpu else "operators"] = number(profiler, machine) // STEPS
    top = [{"name": name[:200], "us per step": us / STEPS} for name, us in times.most_common(TOP)]
    return Finding([row], details={"top": top})


def kernels(profiler: profile) -> list[Any]:
    """Return the events of the GPU: kernels and copies, without annotations."""
    return [
        event
        for event in profiler.events() or []
        if event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False)
    ]


def kernel_times(profiler: profile) -> Counter[str]:
    """Return the microseconds of every kernel by name."""
    times: Counter[str] = Counter()
    for event in kernels(profiler):
        times[event.name] += event.time_range.elapsed_us()
    return times


def operator_times(profiler: profile) -> Counter[str]:
    """Return the microseconds of every operator on a CPU by name, without the operators that it calls."""
    return Counter({event.key: event.self_cpu_time_total for event in profiler.key_averages()})


def number(profiler: profile, machine: Machine) -> int:
    """Return the number of kernels, on a CPU of operators."""
    return len(kernels(profiler)) if machine.is_gpu else sum(event.count for event in profiler.key_averages())


def modulation(profiler: profile, machine: Machine) -> float:
    """Return the microseconds of the modulation, with those of the operators that it calls."""
    own = [event for event in profiler.key_averages() if event.key in MODULATION]
    return sum(event.device_time_total if machine.is_gpu else event.cpu_time_total for event in own)


def idle(profiler: profile) -> float:
    """Return the share of the time from the first to the last kernel in which none runs."""
    return idle_share((event.time_range.start, event.time_range.end) for event in kernels(profiler))


def idle_share(intervals: Iterable[tuple[float, float]]) -> float:
    """Return the share of the time from the start of the first interval to the end of the last that none covers."""
    ordered = sorted(intervals)
    if not ordered:
        return 0.0
    first, reached, gaps = ordered[0][0], ordered[0][1], 0.0
    for start, end in ordered:
        gaps += max(0.0, start - reached)
        reached = max(reached, end)
    return gaps / max(reached - first, 1e-9)
