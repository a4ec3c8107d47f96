"""Write every checkpoint when it is due, also where Lightning puts it off."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from asyncdiff.callbacks.graceful_shutdown import model_checkpoints, order_after_checkpoints
from asyncdiff.training.lightning_internals import (
    save_due_checkpoint,
    saved_step,
    saves_at_epoch_end,
    take_deferral,
    validation_is_due,
)

COUNTERS = (None, "step", "epoch")  # monitored values that no validation changes


class DueCheckpoints(Callback):
    """Writes checkpoints at the steps and epochs at which they are due.

    Lightning's ModelCheckpoint puts off a checkpoint that is due in the last step of an epoch until the next
    validation, which may be many epochs later or never come, and one whose monitored metric is not known yet. Where no
    validation follows the step, this callback writes it at once. An unknown metric counts as the worst, so that the
    file is the first to be replaced; after a resume, the metric of the last validation before counts. At the end of an
    epoch it writes those of `every_n_epochs` that Lightning leaves to validations, unless they monitor a metric of one.

    `train.py` adds this callback by default.
    """

    after_checkpoints = 1

    def __init__(self) -> None:
        self._waiting: list[ModelCheckpoint] = []  # for the validation that follows this step
        self._metrics: dict[str, float] = {}  # monitored, as the checkpoint recorded them from which the run resumed
        self._trainer: Trainer | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the monitored metrics, for a run that resumes from this checkpoint."""
        if self._trainer is None:
            return {}
        metrics = self._metrics | self._trainer.callback_metrics
        monitored = [checkpointer.monitor for checkpointer in model_checkpoints(self._trainer)]
        return {name: float(metrics[name]) for name in monitored if name not in COUNTERS and name in metrics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the monitored metrics."""
        self._metrics = dict(state_dict)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Store the trainer, whose metrics go into checkpoints, and run after ModelCheckpoint."""
        order_after_checkpoints(trainer)
        self._trainer = trainer
        self._waiting = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Write what is due in this step, unless the validation that follows it measures what is monitored."""
        for checkpointer in model_checkpoints(trainer):
            if take_deferral(checkpointer) and _is_unsaved(checkpointer, trainer):
                if self._needs_validation(checkpointer, trainer) and validation_is_due(trainer):
                    self._waiting.append(checkpointer)
                else:
                    save_due_checkpoint(checkpointer, trainer, self._metrics)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the checkpoints that waited for this validation."""
        waiting, self._waiting = self._waiting, []
        for checkpointer in waiting:
            if _is_unsaved(checkpointer, trainer):
                save_due_checkpoint(checkpointer, trainer, self._metrics)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what is due in this epoch."""
        for checkpointer in model_checkpoints(trainer):
            is_due = checkpointer.every_n_epochs and (trainer.current_epoch + 1) % checkpointer.every_n_epochs == 0
            measured = checkpointer.monitor not in COUNTERS and trainer.enable_validation
            if is_due and not measured and saves_at_epoch_end(checkpointer) and _is_unsaved(checkpointer, trainer):
                save_due_checkpoint(checkpointer, trainer, self._metrics)

    def _needs_validation(self, checkpointer: ModelCheckpoint, trainer: Trainer) -> bool:
        # Within an epoch, ModelCheckpoint takes the last validation's metric; a resumed run has it from its checkpoint.
        within_epoch = not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        return checkpointer.monitor not in COUNTERS and not (within_epoch and checkpointer.monitor in self._metrics)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._trainer = None


def _is_unsaved(checkpointer: ModelCheckpoint, trainer: Trainer) -> bool:
    return not trainer.fast_dev_run and saved_step(checkpointer) != trainer.global_step  # type: ignore[attr-defined]
