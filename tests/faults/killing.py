"""Processes that are killed at any moment, and what is left of them."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader


def forked(work: Callable[[], None], log: Path) -> int:
    """Do some work in a process of its own, with a process group of its own, and return the process's number."""
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
        import traceback

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
    """End a process and all that it has started, as the power does; return its exit code."""
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def curves(folder: Path, apart: tuple[str, ...] = ()) -> dict[str, list[tuple[int, float | bytes]]]:
    """Every value of every tag as TensorBoard finds it, doubled ones too, scalars as numbers and pictures as bytes."""
    found: dict[str, list[tuple[int, float | bytes]]] = {}
    for file in sorted(folder.glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.tag.startswith(apart) or value.tag.startswith("_"):
                    continue
                held = value.tensor
                content = held.float_val[0] if held.float_val else b"".join(held.string_val)
                found.setdefault(value.tag, []).append((event.step, content))
    return {tag: sorted(values) for tag, values in found.items()}


def same(a: object, b: object, path: str = "") -> None:
    """Assert that two checkpoints are equal bit for bit, times and paths apart."""
    if isinstance(a, dict):
        assert isinstance(b, dict), path
        assert a.keys() == b.keys(), path
        for key in a:
            if key not in APART:
                same(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, (list, tuple)):
        assert isinstance(b, (list, tuple)), path
        assert len(a) == len(b), path
        for i, (one, other) in enumerate(zip(a, b, strict=True)):
            same(one, other, f"{path}/{i}")
    elif isinstance(a, torch.Tensor):
        assert isinstance(b, torch.Tensor), path
        assert torch.equal(a, b), path
    else:
        assert a == b, f"{path}: {a} and {b}"


# When a checkpoint was written, how fast it went, and what the saver remembers of files.
APART = ("moment", "callbacks", "loops", "scalars")
