"""What a signal does to a run, at a moment that suits all its processes."""

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
    """Saves and ends a run between two steps when it is told to: by SIGTERM, Ctrl-C or SIGUSR1.

    The step that has begun is finished, averages included; then every process learns whether any has been told, and all
    save together into checkpoints/last.ckpt and end with the exit code 128 + signal. Lightning by itself acts in the
    middle of a step: one process may then save while another waits for its gradients, both for ever. A second Ctrl-C
    ends the run at once. A validation is not interrupted; what callbacks measure after the last step is, at once.

    Under SLURM, `#SBATCH --signal=SIGUSR1@SECONDS` announces the time limit: Lightning saves and requeues the job, and
    the job that is run again goes on by itself. SECONDS must be enough for a step and for writing a checkpoint.

    `train.py` has this callback without being told.
    """

    def __init__(self) -> None:
        self._pending, self._signal = NONE, 0
        self._requeue: Callable[[int, Any], Any] | None = None  # Lightning's own
        self._previous_handlers: dict[int, Any] = {}
        self._trainer: Trainer | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen in Lightning's place."""
        self._pending, self._requeue, self._trainer = NONE, None, trainer
        if threading.current_thread() is not threading.main_thread():
            return  # Python hears signals in the main one only
        if SLURMEnvironment.detect():
            handler = signal.getsignal(signal.SIGUSR1)
            self._requeue = handler if callable(handler) else None  # none under auto_requeue=False
        for number in HANDLED_SIGNALS:
            self._previous_handlers[number] = signal.signal(number, self._on_signal)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Act if any process has been told to."""
        if trainer.fit_loop._should_accumulate():
            return  # the step goes on
        wish = self._pending
        if trainer.world_size > 1:
            told = torch.tensor(wish, device=trainer.strategy.root_device)
            wish = int(trainer.strategy.reduce(told, reduce_op="max"))
        self._pending = NONE
        if wish == REQUEUE and self._requeue is not None:
            self._requeue(signal.SIGUSR1, None)
        elif wish == STOP:
            path = _save(trainer)
            number = self._signal or signal.SIGTERM
            name = signal.Signals(number).name
            _print_to_stderr(f"{name}: stopped after step {trainer.global_step}, saved {path}; --ckpt_path last continues")
            sys.exit(128 + number)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Act on what was heard after the last step, and let SIGTERM end what comes now at once."""
        self._restore_handlers()
        if self._pending == REQUEUE and self._requeue is not None:
            self._requeue(signal.SIGUSR1, None)
        elif self._pending == STOP:
            sys.exit(128 + (self._signal or signal.SIGTERM))
        self._restore_default_sigterm()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let SIGTERM end a validation that no training waits for; Lightning takes note of it only."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._restore_default_sigterm()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let SIGTERM end it."""
        self._restore_default_sigterm()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let SIGTERM end it."""
        self._restore_default_sigterm()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the signals as they were."""
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
        """Whether training is over, and callbacks measure what came of it: a run that goes on does that again."""
        module = None if self._trainer is None else self._trainer.lightning_module
        return module is not None and module._current_fx_name == "on_train_end"

    def _restore_default_sigterm(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._previous_handlers[signal.SIGTERM] = signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _restore_handlers(self) -> None:
        usual, self._previous_handlers = self._previous_handlers, {}
        for number, handler in usual.items():
            signal.signal(number, handler)


def _save(trainer: Trainer) -> Path:
    """Save into the run's last.ckpt, as the next ModelCheckpoint will do."""
    writers = [callback for callback in trainer.callbacks if isinstance(callback, ModelCheckpoint)]  # type: ignore[attr-defined]
    folder = next((Path(writer.dirpath) for writer in writers if writer.dirpath), None)
    path = (folder or Path(trainer.default_root_dir) / "checkpoints") / "last.ckpt"
    for writer in writers:
        if writer.save_last and writer.dirpath and Path(writer.dirpath) == path.parent:
            writer.last_model_path = str(path)  # part of its state: it would find the name taken otherwise
    trainer.save_checkpoint(path)
    return path


@rank_zero_only
def _print_to_stderr(line: str) -> None:
    print(line, file=sys.stderr)
