"""Run the measurements of all parts, each within its share of the time."""

import gc
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu.results import DONE, FAILED, SKIPPED, Finding, Results


class Deadline:
    """Point in time, `seconds` from now.

    Args:
        seconds: seconds until then.
        now: clock.
    """

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic):
        self._now = now
        self._end = now() + seconds

    @property
    def left(self) -> float:
        """Seconds left, 0 after the deadline."""
        return max(0.0, self._end - self._now())

    def share(self, fraction: float) -> "Deadline":
        """Return the deadline after a fraction of the time that is left."""
        return Deadline(fraction * self.left, self._now)


@dataclass(frozen=True)
class Measurement:
    """One measurement, after which the results are written.

    Attributes:
        name: name within its part, the same in every run.
        run: function of the deadline of its part.
        needs: seconds that it takes at least; with fewer left, the part ends.
    """

    name: str
    run: Callable[[Deadline], Finding]
    needs: float = 0.0


@dataclass(frozen=True)
class Part:
    """Measurements that share a table and a share of the time.

    Attributes:
        title: heading in the report.
        share: share of the time, relative to the other parts'.
        measurements: function of the machine that yields the measurements.
        is_test: whether errors and wrong results make the command fail.
    """

    title: str
    share: float
    measurements: Callable[[Any], Iterator[Measurement]]
    is_test: bool = False


def run_parts(
    parts: Mapping[str, Part],
    machine: Any,
    results: Results,
    deadline: Deadline,
    *,
    say: Callable[[str], None] = print,
    written: Callable[[], None] = lambda: None,
) -> None:
    """Run the parts that are not finished, in their order; time that a part leaves is shared by those after it.

    Args:
        parts: parts by name.
        machine: argument of their `measurements`.
        results: what was measured before, to which the results are added.
        deadline: when the last measurement should end.
        say: function that prints a line.
        written: called whenever the results have been written.
    """
    unfinished = [name for name in parts if name not in results.finished]
    for name in parts:
        if name not in unfinished:
            say(f"{name}: finished before")
            continue
        part = parts[name]
        others = sum(parts[later].share for later in unfinished[unfinished.index(name) :])
        _run_part(name, part, machine, results, deadline.share(part.share / others), say, written)


def _run_part(
    name: str,
    part: Part,
    machine: Any,
    results: Results,
    deadline: Deadline,
    say: Callable[[str], None],
    written: Callable[[], None],
) -> None:
    say(f"{name}: {part.title}, {deadline.left:.0f} s")
    complete = True
    try:
        for measurement in part.measurements(machine):
            if results.is_done(name, measurement.name):
                continue
            if not deadline.left or deadline.left < measurement.needs:
                note = f"skipped, {deadline.left:.0f} s are left of this part's time: run the command again to continue"
                results.add(name, measurement.name, SKIPPED, 0, Finding(note=note))
                say(f"  {measurement.name} and what follows: {note}")
                complete = False
                break
            complete &= _run(name, part, measurement, results, deadline, say)
            written()
    except Exception as error:  # preparing a measurement may fail as well
        results.add(name, "preparation", FAILED, 0, Finding(note=last_line(error)), is_test=part.is_test)
        say(f"  failed: {last_line(error)}")
        complete = False
    if complete:
        results.finish(name)
    written()


def _run(
    name: str, part: Part, measurement: Measurement, results: Results, deadline: Deadline, say: Callable[[str], None]
) -> bool:
    """Run one measurement and return whether it is done."""
    start = time.perf_counter()
    try:
        finding, status = measurement.run(deadline), DONE
    except Exception as error:  # the others may succeed
        traceback.clear_frames(error.__traceback__)  # they hold tensors
        finding, status = Finding(note=last_line(error)), FAILED
    seconds = time.perf_counter() - start
    results.add(name, measurement.name, status, seconds, finding, is_test=part.is_test)
    free_memory()
    verdict = {None: status, True: "passed", False: "WRONG"}[finding.passed]
    say(f"  {measurement.name}: {verdict}, {seconds:.1f} s{f', {finding.note}' if finding.note else ''}")
    for row in finding.rows:
        say("    " + ", ".join(f"{column} {show(value)}" for column, value in row.items()))
    for goal in finding.goals:
        say(f"    goal {'met' if goal.met else 'missed'}: {goal.name}, measured {show(goal.measured)}")
    return status == DONE


def last_line(error: BaseException) -> str:
    """Return the last line of an error's traceback that is not empty."""
    lines = [line for line in "".join(traceback.format_exception_only(error)).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def free_memory() -> None:
    """Free what the last measurement held, on the GPU as well."""
    import torch

    gc.collect()  # reference cycles hold networks
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def show(value: Any) -> str:
    """Return a value with four significant digits."""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)
