"""Processes that are killed at any moment, and what is left of them."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader


def forked(work: Callable[[], None], log: Path) -> int:
    """Do some work in a process of its own, and return the process's number; what it prints goes into a file."""
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


def ended(child: int, within: float) -> int | None:
    """The exit code of a process, negative for a signal; None if it has not come to its end in time."""
    limit = time.monotonic() + within
    while time.monotonic() < limit:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return None


def kill(child: int) -> int:
    """End a process and all that it has started, as a loss of power does; return its exit code."""
    family, found = [child], 0
    while found < len(family):  # stopped first, so that none starts another meanwhile
        with suppress(ProcessLookupError):
            os.kill(family[found], signal.SIGSTOP)
        family += children(family[found])
        found += 1
    for process in family:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def children(process: int) -> list[int]:
    """The processes that a process has started and that are alive."""
    with suppress(FileNotFoundError, ProcessLookupError):
        tasks = Path(f"/proc/{process}/task").glob("*/children")
        return [int(number) for task in tasks for number in task.read_text().split()]
    return []


def curves(folder: Path) -> dict[str, list[tuple[int, float | bytes]]]:
    """Every value of every tag in event files, doubled ones too, scalars as numbers and pictures as bytes."""
    found: dict[str, list[tuple[int, float | bytes]]] = {}
    for file in sorted(folder.glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if not value.tag.startswith("_"):
                    held = value.tensor
                    content = held.float_val[0] if held.float_val else b"".join(held.string_val)
                    found.setdefault(value.tag, []).append((event.step, content))
    return {tag: sorted(values) for tag, values in found.items()}


# When a checkpoint was written and what its writer remembers of files; counts of the loops are in `curves`.
APART = ("moment", "callbacks", "loops", "scalars")


def unlike(a: object, b: object, path: str = "") -> str | None:
    """Where two checkpoints first differ in a single bit, times and paths apart; None where nowhere."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return None if a.dtype == b.dtype and torch.equal(a, b) else path
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return path
        pairs = [(key, a[key], b[key]) for key in a if key not in APART]
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        if len(a) != len(b):
            return path
        pairs = list(zip(range(len(a)), a, b, strict=True))
    else:
        return None if a == b else path
    return next((found for key, x, y in pairs if (found := unlike(x, y, f"{path}/{key}"))), None)


def lost(expected: Path, found: Path) -> str | None:
    """What a run that was interrupted has lost against one that was not; None where nothing."""
    a, b = curves(expected), curves(found)
    if a.keys() != b.keys():
        return f"tags {sorted(a.keys() ^ b.keys())}"
    for tag in a:
        if [step for step, _ in a[tag]] != [step for step, _ in b[tag]]:
            return f"steps of {tag}: {[step for step, _ in b[tag]]}"
        if a[tag] != b[tag]:
            return f"values of {tag}"
    read = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (expected, found)]
    return unlike(*read)
