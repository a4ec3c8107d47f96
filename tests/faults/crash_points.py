"""End runs at the worst moments, run them again, and compare them with an uninterrupted run.

PYTHONPATH=. python tests/faults/crash_points.py [CRASH_POINT ...]     works in the current folder and prints
{"tried": 23, "lost": []} at the end.

It is a separate program for the reasons given in kill_runs.py.
"""

import argparse
import errno
import io
import json
import os
import resource
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from kill_runs import EXPERIMENT
from killing import difference, fork, kill_tree, wait_for_exit
from lightning.pytorch.callbacks import ModelCheckpoint

from asyncdiff.callbacks import SampleGrid, graceful_shutdown
from asyncdiff.checkpoints.lightning_io import AtomicCheckpointIO
from asyncdiff.cli.train import main as train
from asyncdiff.training.lightning_module import AsyncDiffusion

KILLED = -signal.SIGKILL


def die(*_: Any, **__: Any) -> None:
    """Kill this process, like a power failure."""
    os.kill(os.getpid(), signal.SIGKILL)


def before_call(
    owner: Any, name: str, do: Callable[..., None], *, when: Callable[..., bool] = lambda *_: True, nth: int = 1
):
    """Do something before the nth call of a function that meets a condition."""
    original, calls, static = getattr(owner, name), [], isinstance(vars(owner).get(name), staticmethod)

    def changed(*args: Any, **kwargs: Any) -> Any:
        if when(*args):
            calls.append(1)
            if len(calls) == nth:
                do(*args, **kwargs)
        return original(*args, **kwargs)

    setattr(owner, name, staticmethod(changed) if static else changed)


def write_half(state: Any, stream: Any) -> None:
    """Write the first half of a checkpoint, then kill this process."""
    complete = io.BytesIO()
    torch.serialization.save(state, complete)
    stream.write(complete.getvalue()[: len(complete.getvalue()) // 2])
    stream.flush()
    die()


def disk_full(*_: Any) -> None:
    """Raise the error of a full disk."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def after_step(step: int, do: Callable[[], None]) -> None:
    """Do something after a step, when its checkpoint is written but its scalars are not."""
    original = ModelCheckpoint.on_train_batch_end

    def changed(self: Any, trainer: Any, *args: Any) -> None:
        original(self, trainer, *args)
        if trainer.global_step == step:
            do()

    ModelCheckpoint.on_train_batch_end = changed


def during_step(step: int, number: int) -> None:
    """Send a signal to this process in the middle of a step."""
    original = AsyncDiffusion.training_step

    def changed(self: Any, *args: Any) -> Any:
        if self.trainer.global_step == step:
            os.kill(os.getpid(), number)
        return original(self, *args)

    AsyncDiffusion.training_step = changed


def limit_file_size(size: int) -> None:
    """Make the system refuse to write files of more than `size` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def is_checkpoint(*paths: Any) -> bool:
    """Return whether the last path is a checkpoint."""
    return str(paths[-1]).endswith(".ckpt")


# What happens in the first run, and its exit code.
CRASH_POINTS: dict[str, tuple[Callable[[], None], int]] = {
    "before the first checkpoint": (lambda: after_step(5, die), KILLED),
    "while a checkpoint is written": (lambda: before_call(torch, "save", write_half, nth=4), KILLED),
    "before a checkpoint is renamed": (lambda: before_call(Path, "replace", die, when=is_checkpoint, nth=4), KILLED),
    "after a checkpoint is renamed": (lambda: before_call(ModelCheckpoint, "_link_checkpoint", die, nth=4), KILLED),
    "before last.ckpt is linked": (lambda: before_call(os, "symlink", die, nth=4), KILLED),
    "before an old one is removed": (lambda: before_call(AtomicCheckpointIO, "remove_checkpoint", die, nth=2), KILLED),
    "after a checkpoint, before its step is logged": (lambda: after_step(24, die), KILLED),
    "between two checkpoints": (lambda: after_step(28, die), KILLED),
    "in a validation": (lambda: before_call(AsyncDiffusion, "validation_step", die, nth=4), KILLED),
    "in the last step": (lambda: after_step(64, die), KILLED),
    "by SIGTERM in a step": (lambda: during_step(20, signal.SIGTERM), 128 + signal.SIGTERM),
    "by Ctrl-C in a step": (lambda: during_step(21, signal.SIGINT), 128 + signal.SIGINT),
    "by SIGUSR1 in the step of a validation": (lambda: during_step(25, signal.SIGUSR1), 128 + signal.SIGUSR1),
    "by SIGTERM in the last evaluation": (
        lambda: before_call(SampleGrid, "on_train_end", lambda *_: os.kill(os.getpid(), signal.SIGTERM)),
        -signal.SIGTERM,
    ),
    "when the disk is full": (lambda: before_call(torch, "save", disk_full, nth=4), 2),
    "when files get too large": (lambda: after_step(25, lambda: limit_file_size(100_000)), 2),
}


def run_once(
    run: str, crash: Callable[[], None] | None, expected: int, *options: str, **environment: str
) -> str | None:
    """Run until a crash or to the end; return what is unexpected about its exit."""

    def work() -> None:
        os.environ.update(environment)
        if crash is not None:
            crash()
        train(["fit", "--config", "experiment.yaml", "--trainer.default_root_dir", run, *options])

    log = Path(f"{run}.txt")
    log.unlink(missing_ok=True)
    return check_exit(fork(work, log), log, expected)


def check_exit(child: int, log: Path, expected: int) -> str | None:
    """Return what is unexpected about the exit of a process; None if nothing."""
    if (code := wait_for_exit(child, 300)) is None:
        kill_tree(child)
    printed = log.read_text()
    if code != expected:
        return f"exit code {code}\n{printed[-3000:]}"
    if code > 0 and "Traceback" in printed:
        return f"a traceback\n{printed[-3000:]}"
    return None


def run_pair(
    run: str,
    crash: Callable[[], None] | None,
    expected: int,
    *,
    strategy: str = "ddp",
    first_too: bool = False,
    prepare: Callable[[], None] = lambda: None,
) -> str | None:
    """Run as two processes, of which the second crashes, or both; return what is unexpected about their exits.

    Both call `prepare` before they begin.
    """
    port = free_port()
    options = ["--trainer.devices", "2", "--trainer.strategy", strategy, "--data.init_args.workers", "1"]
    options += ["--data.init_args.batch_size", "24", "--auto_resume", "true", "--trainer.default_root_dir", run]

    def work(rank: int) -> Callable[[], None]:
        def begin() -> None:
            os.environ.update(LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            prepare()
            if crash is not None and (rank or first_too):
                crash()
            train(["fit", "--config", "experiment.yaml", *options])

        return begin

    logs = [Path(f"{run}_{rank}.txt") for rank in (0, 1)]
    for log in logs:
        log.unlink(missing_ok=True)
    both = [fork(work(rank), logs[rank]) for rank in (0, 1)]
    ends = [check_exit(child, log, expected) for child, log in zip(both, logs, strict=True)]
    return next(filter(None, ends), None)


def crash_and_resume(name: str) -> str | None:
    """Return what is lost when a run crashes and is resumed."""
    crash, expected = CRASH_POINTS[name]
    shutil.rmtree("run", ignore_errors=True)
    wrong = run_once("run", crash, expected) or run_once("run", None, 0, "--auto_resume", "true")
    return wrong or difference(Path("uninterrupted"), Path("run"))


def end_of_epoch() -> str | None:
    """Crash right after the last step of an epoch, in which a checkpoint is due, but no validation follows."""
    shutil.rmtree("run", ignore_errors=True)
    options = ["--trainer.limit_train_batches", "6"]
    wrong = run_once("uninterrupted_epochs", None, 0, *options)
    wrong = wrong or run_once(
        "run", lambda: before_call(AsyncDiffusion, "training_step", die, nth=25), KILLED, *options
    )
    wrong = wrong or check_step("run", 24)
    wrong = wrong or run_once("run", None, 0, *options, "--auto_resume", "true")
    return wrong or difference(Path("uninterrupted_epochs"), Path("run"))


def signal_in_step_of_checkpoint() -> str | None:
    """Send SIGTERM in a step in which a checkpoint is due: its file is written as well."""
    shutil.rmtree("run", ignore_errors=True)
    wrong = run_once("run", lambda: during_step(23, signal.SIGTERM), 128 + signal.SIGTERM)
    steps = sorted(int(file.stem.partition("step=")[2]) for file in Path("run/checkpoints").glob("*step=*.ckpt"))
    wrong = wrong or (f"checkpoints of steps {steps}" if steps != [18, 24] else None)
    wrong = wrong or run_once("run", None, 0, "--auto_resume", "true")
    return wrong or difference(Path("uninterrupted"), Path("run"))


def crash_while_rewriting_events() -> str | None:
    """Crash the resumed run too, while it removes the events after the checkpoint."""
    shutil.rmtree("run", ignore_errors=True)
    again = ("--auto_resume", "true")
    wrong = run_once("run", lambda: after_step(28, die), KILLED)
    wrong = wrong or run_once("run", lambda: before_call(os, "truncate", die), KILLED, *again)
    return wrong or run_once("run", None, 0, *again) or difference(Path("uninterrupted"), Path("run"))


def damaged_checkpoint() -> str | None:
    """Damage the newest checkpoint after the crash: the run resumes from the one before."""
    shutil.rmtree("run", ignore_errors=True)
    wrong = run_once("run", lambda: after_step(28, die), KILLED)
    newest = Path("run/checkpoints/last.ckpt").resolve()
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    wrong = wrong or run_once("run", None, 0, "--ckpt_path", "last")
    if not wrong and "is skipped" not in Path("run.txt").read_text():
        return "no warning"
    return wrong or difference(Path("uninterrupted"), Path("run"))


def signal_to_one_process() -> str | None:
    """Send a signal to one of two processes: both save a checkpoint and exit, also if they agree as on GPUs."""
    wrong = run_pair("uninterrupted_pair", None, 0)
    for steps in (0, 2):
        shutil.rmtree("run", ignore_errors=True)
        arguments = {"crash": lambda: during_step(20, signal.SIGTERM), "prepare": lambda n=steps: agree_after(n)}
        wrong = wrong or run_pair("run", expected=128 + signal.SIGTERM, **arguments) or check_step("run", 21 + steps)
        wrong = wrong or run_pair("run", None, 0) or difference(Path("uninterrupted_pair"), Path("run"))
    return wrong


def agree_after(steps: int) -> None:
    """Let processes act on a signal some steps after it."""
    graceful_shutdown.lag = lambda device: steps


def check_step(run: str, expected: int) -> str | None:
    """Return what is unexpected about the step of a run's last.ckpt."""
    step = torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True)["global_step"]
    return None if step == expected else f"last.ckpt has step {step}"


def sharded() -> str | None:
    """Kill both of two processes that shard the network."""
    shutil.rmtree("run", ignore_errors=True)
    wrong = run_pair("uninterrupted_sharded", None, 0, strategy="fully_shard")
    wrong = wrong or run_pair("run", lambda: after_step(27, die), KILLED, strategy="fully_shard", first_too=True)
    return (
        wrong
        or run_pair("run", None, 0, strategy="fully_shard")
        or difference(Path("uninterrupted_sharded"), Path("run"))
    )


def slurm_requeue() -> str | None:
    """Reach the time limit under SLURM, which announces it, ends the job, and requeues it as requested."""
    shutil.rmtree("run", ignore_errors=True)
    scontrol = Path("bin/scontrol")
    scontrol.parent.mkdir(exist_ok=True)
    scontrol.write_text('#!/bin/sh\necho "$@" >> scontrol.txt\n')
    scontrol.chmod(0o755)
    job = {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "7", "SLURM_PROCID": "0"}
    job |= {"SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NODELIST": "here"}
    job["PATH"] = f"{scontrol.parent.resolve()}{os.pathsep}{os.environ['PATH']}"

    def time_limit() -> None:
        during_step(20, signal.SIGUSR1)
        during_step(23, signal.SIGTERM)

    wrong = run_once("run", time_limit, 128 + signal.SIGTERM, **job)
    wrong = wrong or run_once("run", None, 0, **job, SLURM_RESTART_COUNT="1")
    if not wrong and Path("scontrol.txt").read_text() != "requeue 7\n":
        return "no requeue"
    return wrong or difference(Path("uninterrupted"), Path("run"))


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


OTHERS = {
    "after the last step of an epoch": end_of_epoch,
    "by SIGTERM in the step of a checkpoint": signal_in_step_of_checkpoint,
    "while events are removed": crash_while_rewriting_events,
    "when the newest checkpoint is damaged": damaged_checkpoint,
    "by SIGTERM to one of two processes": signal_to_one_process,
    "with a sharded network": sharded,
    "by SLURM": slurm_requeue,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("crash_points", nargs="*", choices=[[], *CRASH_POINTS, *OTHERS])
    chosen = parser.parse_args().crash_points or [*CRASH_POINTS, *OTHERS]
    Path("experiment.yaml").write_text(EXPERIMENT)
    if wrong := run_once("uninterrupted", None, 0):
        raise SystemExit(f"the uninterrupted run fails with {wrong}")
    outcomes = {name: OTHERS[name]() if name in OTHERS else crash_and_resume(name) for name in chosen}
    print(json.dumps({"tried": len(chosen), "lost": [f"{name}: {found}" for name, found in outcomes.items() if found]}))
