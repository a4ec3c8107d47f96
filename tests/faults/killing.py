"""Fork and kill processes, and compare interrupted runs with uninterrupted ones."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader


def fork(work: Callable[[], None], log: Path) -> int:
    """Run `work` in a forked process with its output in a log file, and return the process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        torch.set_num_threads(1)
        work()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait_for_exit(child: int, within: float) -> int | None:
    """Wait for a process; return its exit code, negative for a signal, or None after `within` seconds."""
    limit = time.monotonic() + within
    while time.monotonic() < limit:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return None


def kill_tree(child: int) -> int:
    """Kill a process and all its descendants, like a power failure, and return its exit code."""
    family, count = [child], 0
    while count < len(family):  # stopped first, so that none starts another meanwhile
        with suppress(ProcessLookupError):
            os.kill(family[count], signal.SIGSTOP)
        family += children(family[count])
        count += 1
    for process in family:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def children(process: int) -> list[int]:
    """Return the live child processes of a process."""
    with suppress(FileNotFoundError, ProcessLookupError):
        tasks = Path(f"/proc/{process}/task").glob("*/children")
        return [int(number) for task in tasks for number in task.read_text().split()]
    return []


def read_curves(folder: Path) -> dict[str, list[tuple[int, float | bytes]]]:
    """Return all values in event files by tag, including duplicates: scalars as numbers, images as bytes."""
    curves: dict[str, list[tuple[int, float | bytes]]] = {}
    for file in sorted(folder.glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if not value.tag.startswith("_"):
                    tensor = value.tensor
                    content = tensor.float_val[0] if tensor.float_val else b"".join(tensor.string_val)
                    curves.setdefault(value.tag, []).append((event.step, content))
    return {tag: sorted(values) for tag, values in curves.items()}


def shown_steps(folder: Path) -> dict[str, list[int]]:
    """Return the steps of each curve as TensorBoard shows them, which reads files in the order of their names."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()
    read = {"scalars": events.Scalars, "images": events.Images}
    return {tag: [event.step for event in read[kind](tag)] for kind in read for tag in events.Tags()[kind]}


# Keys with times, file names and loop counters; the loop counters show in the curves.
IGNORED = ("moment", "callbacks", "loops", "scalars")


def first_difference(a: object, b: object, path: str = "") -> str | None:
    """Return the key path of the first difference between two checkpoints, except for `IGNORED`; None if equal."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return None if a.dtype == b.dtype and torch.equal(a, b) else path
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return path
        pairs = [(key, a[key], b[key]) for key in a if key not in IGNORED]
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        if len(a) != len(b):
            return path
        pairs = list(zip(range(len(a)), a, b, strict=True))
    else:
        return None if a == b else path
    return next((found for key, x, y in pairs if (found := first_difference(x, y, f"{path}/{key}"))), None)


def difference(expected: Path, interrupted: Path) -> str | None:
    """Return the first difference of an interrupted run from an uninterrupted one; None if they are identical."""
    a, b = read_curves(expected), read_curves(interrupted)
    if a.keys() != b.keys():
        return f"tags {sorted(a.keys() ^ b.keys())}"
    for tag in a:
        if [step for step, _ in a[tag]] != [step for step, _ in b[tag]]:
            return f"steps of {tag}: {[step for step, _ in b[tag]]}"
        if a[tag] != b[tag]:
            return f"values of {tag}"
    read = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (expected, interrupted)]
    return first_difference(*read)
