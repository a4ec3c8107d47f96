"""Graceful shutdown: on SIGTERM, SIGINT or SIGUSR1, finish the step, checkpoint on all processes, exit."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_only

NONE, REQUEUE, STOP = 0, 1, 2
HANDLED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class GracefulShutdown(Callback):
    """Saves a checkpoint and ends the run between two steps on SIGTERM, Ctrl-C (SIGINT) or SIGUSR1.

    The current step is finished, EMA update included; then all processes learn whether any of them received a signal,
    save checkpoints/last.ckpt together and exit with the code 128 + signal. Without this callback Lightning acts in the
    middle of a step: one process may then save while another waits for its gradients, a deadlock. A second Ctrl-C ends
    the run immediately. A validation is not interrupted; measurements after the last step are, immediately.

    Under SLURM, `#SBATCH --signal=SIGUSR1@SECONDS` announces the time limit: Lightning saves and requeues the job, and
    the new job resumes by itself. SECONDS must be enough for a step and for writing a checkpoint.

    `train.py` adds this callback by default.
    """

    def __init__(self) -> None:
        self._pending, self._signal = NONE, 0
        self._requeue: Callable[[int, Any], Any] | None = None  # Lightning's handler, which saves and requeues the job
        self._previous_handlers: dict[int, Any] = {}
        self._trainer: Trainer | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's signal handlers."""
        self._pending, self._requeue, self._trainer = NONE, None, trainer
        if threading.current_thread() is not threading.main_thread():
            return  # signal handlers can only be set in the main thread
        if SLURMEnvironment.detect():
            handler = signal.getsignal(signal.SIGUSR1)
            self._requeue = handler if callable(handler) else None  # none under auto_requeue=False
        for number in HANDLED_SIGNALS:
            self._previous_handlers[number] = signal.signal(number, self._on_signal)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Shut down if any process has received a signal."""
        if trainer.fit_loop._should_accumulate():
            return  # in the middle of a step
        action = self._pending
        if trainer.world_size > 1:
            own = torch.tensor(action, device=trainer.strategy.root_device)
            action = int(trainer.strategy.reduce(own, reduce_op="max"))
        self._pending = NONE
        if action == REQUEUE and self._requeue is not None:
            self._requeue(signal.SIGUSR1, None)
        elif action == STOP:
            path = _save(trainer)
            number = self._signal or signal.SIGTERM
            name = signal.Signals(number).name
            _print_to_stderr(
                f"{name}: stopped after step {trainer.global_step}, saved {path}; resume with --ckpt_path last"
            )
            sys.exit(128 + number)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Handle a signal received after the last step; from now on SIGTERM ends the process immediately."""
        self._restore_handlers()
        if self._pending == REQUEUE and self._requeue is not None:
            self._requeue(signal.SIGUSR1, None)
        elif self._pending == STOP:
            sys.exit(128 + (self._signal or signal.SIGTERM))
        self._restore_default_sigterm()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let SIGTERM end `validate` immediately; Lightning would only record the signal."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._restore_default_sigterm()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore_default_sigterm()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore_default_sigterm()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the previous signal handlers."""
        self._restore_handlers()
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
        """Return whether callbacks evaluate the trained model in `on_train_end`; a resumed run repeats this."""
        module = None if self._trainer is None else self._trainer.lightning_module
        return module is not None and module._current_fx_name == "on_train_end"

    def _restore_default_sigterm(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._previous_handlers[signal.SIGTERM] = signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _restore_handlers(self) -> None:
        handlers, self._previous_handlers = self._previous_handlers, {}
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _save(trainer: Trainer) -> Path:
    """Save the run's last.ckpt, in the folder of its ModelCheckpoint."""
    writers = [callback for callback in trainer.callbacks if isinstance(callback, ModelCheckpoint)]  # type: ignore[attr-defined]
    folder = next((Path(writer.dirpath) for writer in writers if writer.dirpath), None)
    path = (folder or Path(trainer.default_root_dir) / "checkpoints") / "last.ckpt"
    for writer in writers:
        if writer.save_last and writer.dirpath and Path(writer.dirpath) == path.parent:
            writer.last_model_path = str(path)  # part of its state; otherwise a resumed run would save to last-v1.ckpt
    trainer.save_checkpoint(path)
    return path


@rank_zero_only
def _print_to_stderr(line: str) -> None:
    print(line, file=sys.stderr)
