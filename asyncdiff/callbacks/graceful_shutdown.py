"""Shut down gracefully: on SIGTERM, SIGINT or SIGUSR1, finish the step, save a checkpoint on all processes, exit."""

import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from asyncdiff.callbacks.every_n_steps import EveryNSteps
from asyncdiff.devices import HostCopy
from asyncdiff.training.lightning_internals import (
    ask_for_sigterm,
    saved_step,
    set_saved_file,
    set_saved_step,
    validation_is_due,
)
from asyncdiff.training.optimization.nonfinite_steps import lag

NONE, REQUEUE, STOP = 0, 1, 2
HANDLED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class GracefulShutdown(Callback):
    """Saves a checkpoint and ends the run after the current step on SIGTERM, Ctrl-C (SIGINT) or SIGUSR1.

    The current step is finished, including the EMA update. Then all processes agree on whether any of them has received
    a signal, save checkpoints/last.ckpt together, and exit with code 128 + signal number. Without this callback
    Lightning handles the signal in the middle of a step: one process may save while another waits for its gradients,
    which is a deadlock. A second Ctrl-C ends the run immediately. A validation is not interrupted, but a signal
    interrupts evaluations after the last step immediately.

    On several GPUs the processes read what they have agreed on two steps later, by when it is on the host, so that
    nobody waits; before a validation and at the end of an epoch or of the run they read it at once. All of them end
    after the same step.

    Under SLURM, `#SBATCH --signal=SIGUSR1@SECONDS` announces the time limit: Lightning saves a checkpoint and requeues
    the job, and the new job resumes automatically. SECONDS must leave time for one step and for writing a checkpoint.

    `train.py` adds this callback by default.
    """

    after_checkpoints = 2

    def __init__(self) -> None:
        self._pending, self._signal = NONE, 0
        self._requeue: Callable[[int, Any], Any] | None = None  # Lightning's handler, which saves and requeues the job
        self._previous_handlers: dict[int, Any] = {}
        self._trainer: Trainer | None = None
        self._steps = EveryNSteps(1)
        self._agreed: deque[HostCopy] = deque()  # what any process wanted in each of the last steps

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the checkpoints of a step be written before it ends."""
        order_after_checkpoints(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's signal handlers, and its question in every step whether the first process has SIGTERM."""
        self._pending, self._requeue, self._trainer = NONE, None, trainer
        self._steps.start(trainer)
        self._agreed.clear()
        if threading.current_thread() is not threading.main_thread():
            return  # signal handlers can only be set in the main thread
        if SLURMEnvironment.detect():
            handler = signal.getsignal(signal.SIGUSR1)
            self._requeue = handler if callable(handler) else None  # none with auto_requeue=False
        for number in HANDLED_SIGNALS:
            self._previous_handlers[number] = signal.signal(number, self._on_signal)
        ask_for_sigterm(trainer, ask=False)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Shut down if any process has received a signal."""
        if not self._steps.is_due(trainer):
            return  # gradients are still being accumulated
        action = self._agree(trainer) if trainer.world_size > 1 else self._pending
        if self._pending <= action:  # otherwise a signal that the others do not know of yet
            self._pending = NONE
        if action == REQUEUE and self._requeue is not None:
            self._requeue(signal.SIGUSR1, None)
        elif action == STOP:
            number = self._signal or signal.SIGTERM
            if trainer.fast_dev_run:  # type: ignore[attr-defined]
                sys.exit(128 + number)
            path = save_last_checkpoint(trainer)
            name = signal.Signals(number).name
            _print_to_stderr(
                f"{name}: stopped after step {trainer.global_step}, saved {path}; resume with --ckpt_path last"
            )
            sys.exit(128 + number)

    def _agree(self, trainer: Trainer) -> int:
        """Return what any process wanted some steps ago, the same on all of them; forget all that was wanted since."""
        device = trainer.strategy.root_device
        wanted = torch.full((), self._pending, device=device)  # filled on the device, without a copy from the host
        dist.all_reduce(wanted, op=dist.ReduceOp.MAX)
        self._agreed.append(HostCopy(wanted))
        ends = trainer.is_last_batch or trainer.should_stop or trainer.global_step == trainer.max_steps
        # An interval of time need not have passed on all processes at the same step.
        by_steps = isinstance(getattr(trainer, "val_check_interval", None), (int, float))
        validates = by_steps and validation_is_due(trainer)
        now, action = ends or validates, NONE
        while action == NONE and len(self._agreed) > (0 if now else lag(device)):
            action = int(self._agreed.popleft().read())
        if action != NONE:
            self._agreed.clear()
        return action

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Handle a signal received after the last step; from now on SIGTERM ends the process immediately."""
        self._restore_handlers()
        self._pending = max([self._pending, *(int(agreed.read()) for agreed in self._agreed)])
        if self._pending == REQUEUE and self._requeue is not None:
            self._requeue(signal.SIGUSR1, None)
        elif self._pending == STOP:
            sys.exit(128 + (self._signal or signal.SIGTERM))
        self._restore_default_sigterm()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let SIGTERM end `validate`, `test` and `predict` immediately; Lightning would only record the signal."""
        if trainer.state.fn != TrainerFn.FITTING:
            self._restore_default_sigterm()

    on_test_start = on_predict_start = on_validation_start

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the previous signal handlers."""
        self._restore_handlers()
        ask_for_sigterm(trainer, ask=True)
        self._trainer = None

    def _on_signal(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT and (self._pending == STOP or self._evaluates_after_training()):
            raise KeyboardInterrupt
        if number == signal.SIGTERM and self._evaluates_after_training():
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        requeue = number == signal.SIGUSR1 and self._requeue is not None
        self._pending = max(self._pending, REQUEUE if requeue else STOP)
        self._signal = number

    def _evaluates_after_training(self) -> bool:
        """Return whether callbacks are evaluating the trained model in `on_train_end`, which a resumed run repeats."""
        if self._trainer is None:
            return False
        loop = self._trainer.fit_loop
        epochs = loop.epoch_progress.current
        return epochs.completed == epochs.ready and loop.done

    def _restore_default_sigterm(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._previous_handlers[signal.SIGTERM] = signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _restore_handlers(self) -> None:
        handlers, self._previous_handlers = self._previous_handlers, {}
        for number, handler in handlers.items():
            signal.signal(number, handler)


def model_checkpoints(trainer: Trainer) -> list[ModelCheckpoint]:
    """Return the trainer's callbacks that save checkpoints."""
    return [callback for callback in trainer.callbacks if isinstance(callback, ModelCheckpoint)]  # type: ignore[attr-defined]


def order_after_checkpoints(trainer: Trainer) -> None:
    """Move callbacks with a number `after_checkpoints` behind ModelCheckpoint, which Lightning puts at the end."""
    # A new list, because Lightning may be calling those in the old one.
    ordered = sorted(trainer.callbacks, key=lambda callback: getattr(callback, "after_checkpoints", 0))  # type: ignore[attr-defined]
    trainer.callbacks = ordered  # type: ignore[attr-defined]


def save_last_checkpoint(trainer: Trainer, *, network_only: bool = False) -> Path:
    """Save last.ckpt in the folder of the ModelCheckpoint, preferably one with `save_last`, unless it has done so.

    Args:
        trainer: trainer of the run.
        network_only: leave out the state of training, without which a run cannot be resumed.

    Returns:
        Path of the file.
    """
    checkpointers = sorted(model_checkpoints(trainer), key=lambda checkpointer: not checkpointer.save_last)
    folder = next((Path(checkpointer.dirpath) for checkpointer in checkpointers if checkpointer.dirpath), None)
    path = (folder or Path(trainer.default_root_dir) / "checkpoints") / "last.ckpt"
    complete = [c for c in checkpointers if c.save_last and (network_only or not c.save_weights_only)]
    if any(saved_step(c) == trainer.global_step and c.last_model_path == str(path) for c in complete):
        return path
    owners = [c for c in checkpointers if c.save_last and c.dirpath and Path(c.dirpath) == path.parent]
    for checkpointer in owners:
        # This is part of its state; otherwise a resumed run would save to last-v1.ckpt.
        checkpointer.last_model_path = str(path)
    trainer.save_checkpoint(path, network_only)
    for checkpointer in owners:
        set_saved_step(checkpointer, trainer.global_step)
        set_saved_file(checkpointer, str(path))
    return path


@rank_zero_only
def _print_to_stderr(line: str) -> None:
    print(line, file=sys.stderr)
