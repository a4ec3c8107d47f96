"""Ends runs at the worst moments, runs them again, and compares them with a run that was left alone.

PYTHONPATH=. python tests/faults/crash_points.py [MOMENT ...]     prints {"tried": 21, "lost": []} at its end, and works
in the present folder.

In a process of its own, for the reasons of kill_runs.py.
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
from killing import ended, forked, kill, lost
from lightning.pytorch.callbacks import ModelCheckpoint
from tensorboard.summary.writer.record_writer import RecordWriter

from asyncdiff.callbacks import SampleGrid
from asyncdiff.checkpoints.lightning_io import AtomicCheckpointIO
from asyncdiff.cli.train import main as train
from asyncdiff.training.module import AsyncDiffusion

KILLED = -signal.SIGKILL


def die(*_: Any, **__: Any) -> None:
    """What a loss of power does to this process."""
    os.kill(os.getpid(), signal.SIGKILL)


def instead(
    owner: Any, name: str, do: Callable[..., None], *, when: Callable[..., bool] = lambda *_: True, nth: int = 1
):
    """Do something before the nth call of a function that meets a condition."""
    usual, calls, static = getattr(owner, name), [], isinstance(vars(owner).get(name), staticmethod)

    def changed(*args: Any, **kwargs: Any) -> Any:
        if when(*args):
            calls.append(1)
            if len(calls) == nth:
                do(*args, **kwargs)
        return usual(*args, **kwargs)

    setattr(owner, name, staticmethod(changed) if static else changed)


def half(state: Any, stream: Any) -> None:
    """Write the first half of a checkpoint, and die."""
    whole = io.BytesIO()
    torch.serialization.save(state, whole)
    stream.write(whole.getvalue()[: len(whole.getvalue()) // 2])
    stream.flush()
    die()


def full(*_: Any) -> None:
    """What the system says when the disk is full."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def at_step(step: int, do: Callable[[], None]) -> None:
    """Do something after a step, when its checkpoint is written and its scalars are not."""
    usual = ModelCheckpoint.on_train_batch_end

    def changed(self: Any, trainer: Any, *args: Any) -> None:
        usual(self, trainer, *args)
        if trainer.global_step == step:
            do()

    ModelCheckpoint.on_train_batch_end = changed


def during_step(step: int, number: int) -> None:
    """Get a signal in the middle of a step."""
    usual = AsyncDiffusion.training_step

    def changed(self: Any, *args: Any) -> Any:
        if self.trainer.global_step == step:
            os.kill(os.getpid(), number)
        return usual(self, *args)

    AsyncDiffusion.training_step = changed


def limit(size: int) -> None:
    """Let the system refuse to write files of more bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def is_checkpoint(*paths: Any) -> bool:
    """Whether the last path is one of a checkpoint."""
    return str(paths[-1]).endswith(".ckpt")


# What happens in the first run, and how that ends.
MOMENTS: dict[str, tuple[Callable[[], None], int]] = {
    "before the first checkpoint": (lambda: at_step(5, die), KILLED),
    "while a checkpoint is written": (lambda: instead(torch, "save", half, nth=4), KILLED),
    "before a checkpoint gets its name": (lambda: instead(Path, "replace", die, when=is_checkpoint, nth=4), KILLED),
    "after it got its name": (lambda: instead(ModelCheckpoint, "_link_checkpoint", die, nth=4), KILLED),
    "while the last one has no name": (lambda: instead(os, "symlink", die, nth=4), KILLED),
    "before an old one is removed": (lambda: instead(AtomicCheckpointIO, "remove_checkpoint", die, nth=2), KILLED),
    "after a checkpoint, before its step is logged": (lambda: at_step(24, die), KILLED),
    "between two checkpoints": (lambda: at_step(28, die), KILLED),
    "in a validation": (lambda: instead(AsyncDiffusion, "validation_step", die, nth=4), KILLED),
    "in the last step": (lambda: at_step(64, die), KILLED),
    "by SIGTERM in a step": (lambda: during_step(20, signal.SIGTERM), 128 + signal.SIGTERM),
    "by Ctrl-C in a step": (lambda: during_step(21, signal.SIGINT), 128 + signal.SIGINT),
    "by SIGUSR1 in the step of a validation": (lambda: during_step(25, signal.SIGUSR1), 128 + signal.SIGUSR1),
    "by SIGTERM in the last evaluation": (
        lambda: instead(SampleGrid, "on_train_end", lambda *_: os.kill(os.getpid(), signal.SIGTERM)),
        -signal.SIGTERM,
    ),
    "when the disk is full": (lambda: instead(torch, "save", full, nth=4), 2),
    "when files get too large": (lambda: at_step(25, lambda: limit(100_000)), 2),
}


def begun(run: str, moment: Callable[[], None] | None, expected: int, *words: str, **environment: str) -> str | None:
    """Run until a moment that ends it; what is unexpected about its end."""

    def work() -> None:
        os.environ.update(environment)
        if moment is not None:
            moment()
        train(["fit", "--config", "experiment.yaml", "--trainer.default_root_dir", run, *words])

    log = Path(f"{run}.txt")
    log.unlink(missing_ok=True)
    return judged(forked(work, log), log, expected)


def judged(child: int, log: Path, expected: int) -> str | None:
    """What is unexpected about the end of a process; None if nothing."""
    if (code := ended(child, 300)) is None:
        kill(child)
    told = log.read_text()
    if code != expected:
        return f"exit code {code}\n{told[-3000:]}"
    if code > 0 and "Traceback" in told:
        return f"a traceback\n{told[-3000:]}"
    return None


def pair(
    run: str, moment: Callable[[], None] | None, expected: int, *, strategy: str = "ddp", first_too: bool = False
) -> str | None:
    """Run as two processes, of which the second meets the moment, or both do."""
    port = free_port()
    words = ["--trainer.devices", "2", "--trainer.strategy", strategy, "--data.init_args.workers", "1"]
    words += ["--data.init_args.batch_size", "24", "--auto_resume", "true", "--trainer.default_root_dir", run]

    def work(rank: int) -> Callable[[], None]:
        def begin() -> None:
            os.environ.update(LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            if moment is not None and (rank or first_too):
                moment()
            train(["fit", "--config", "experiment.yaml", *words])

        return begin

    logs = [Path(f"{run}_{rank}.txt") for rank in (0, 1)]
    for log in logs:
        log.unlink(missing_ok=True)
    both = [forked(work(rank), logs[rank]) for rank in (0, 1)]
    ends = [judged(child, log, expected) for child, log in zip(both, logs, strict=True)]
    return next(filter(None, ends), None)


def tried(name: str) -> str | None:
    """What a run that is ended at a moment has lost after another one has gone on from it."""
    moment, expected = MOMENTS[name]
    shutil.rmtree("run", ignore_errors=True)
    wrong = begun("run", moment, expected) or begun("run", None, 0, "--auto_resume", "true")
    return wrong or lost(Path("whole"), Path("run"))


def rewriting() -> str | None:
    """The same, where the run that goes on dies while it takes back what came after the checkpoint."""
    shutil.rmtree("run", ignore_errors=True)
    again = ("--auto_resume", "true")
    wrong = begun("run", lambda: at_step(28, die), KILLED)
    wrong = wrong or begun("run", lambda: instead(RecordWriter, "write", die, nth=6), KILLED, *again)
    return wrong or begun("run", None, 0, *again) or lost(Path("whole"), Path("run"))


def damaged() -> str | None:
    """The same, where the newest checkpoint has become damaged: the one before it serves."""
    shutil.rmtree("run", ignore_errors=True)
    wrong = begun("run", lambda: at_step(28, die), KILLED)
    newest = Path("run/checkpoints/last.ckpt").resolve()
    held = bytearray(newest.read_bytes())
    held[len(held) // 2] ^= 1
    newest.write_bytes(held)
    wrong = wrong or begun("run", None, 0, "--ckpt_path", "last")
    if not wrong and "is skipped" not in Path("run.txt").read_text():
        return "no warning"
    return wrong or lost(Path("whole"), Path("run"))


def told_apart() -> str | None:
    """The same, where one of two processes gets a signal: both save together and end."""
    shutil.rmtree("run", ignore_errors=True)
    wrong = pair("whole_pair", None, 0)
    wrong = wrong or pair("run", lambda: during_step(20, signal.SIGTERM), 128 + signal.SIGTERM)
    return wrong or pair("run", None, 0) or lost(Path("whole_pair"), Path("run"))


def shared_out() -> str | None:
    """The same, where two processes share the network out, and both die."""
    shutil.rmtree("run", ignore_errors=True)
    wrong = pair("whole_shared", None, 0, strategy="fully_shard")
    wrong = wrong or pair("run", lambda: at_step(27, die), KILLED, strategy="fully_shard", first_too=True)
    return wrong or pair("run", None, 0, strategy="fully_shard") or lost(Path("whole_shared"), Path("run"))


def requeued() -> str | None:
    """The same under SLURM, which announces the time limit, ends the job, and runs it again as it was told to."""
    shutil.rmtree("run", ignore_errors=True)
    scontrol = Path("bin/scontrol")
    scontrol.parent.mkdir(exist_ok=True)
    scontrol.write_text('#!/bin/sh\necho "$@" >> asked.txt\n')
    scontrol.chmod(0o755)
    job = {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "7", "SLURM_PROCID": "0"}
    job |= {"SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NODELIST": "here"}
    job["PATH"] = f"{scontrol.parent.resolve()}{os.pathsep}{os.environ['PATH']}"

    def limit_is_near() -> None:
        during_step(20, signal.SIGUSR1)
        during_step(23, signal.SIGTERM)

    wrong = begun("run", limit_is_near, 128 + signal.SIGTERM, **job)
    wrong = wrong or begun("run", None, 0, **job, SLURM_RESTART_COUNT="1")
    if not wrong and Path("asked.txt").read_text() != "requeue 7\n":
        return "no requeue"
    return wrong or lost(Path("whole"), Path("run"))


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


OTHERS = {
    "while events are taken back": rewriting,
    "when the newest is damaged": damaged,
    "by SIGTERM to one of two processes": told_apart,
    "with a network that is shared out": shared_out,
    "by SLURM": requeued,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("moments", nargs="*", choices=[[], *MOMENTS, *OTHERS])
    chosen = parser.parse_args().moments or [*MOMENTS, *OTHERS]
    Path("experiment.yaml").write_text(EXPERIMENT)
    if wrong := begun("whole", None, 0):
        raise SystemExit(f"the work itself fails with {wrong}")
    outcomes = {name: OTHERS[name]() if name in OTHERS else tried(name) for name in chosen}
    print(json.dumps({"tried": len(chosen), "lost": [f"{name}: {found}" for name, found in outcomes.items() if found]}))
