"""The only place that names private attributes of Lightning; a test notices if a new version renames one."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


def attached_trainer(module: LightningModule) -> Trainer | None:
    """Return the trainer of a module, or None outside a run, where `module.trainer` raises."""
    return module._trainer


def logged_step(trainer: Trainer) -> int:
    """Return the step under which Lightning logs: the number of completed steps, without the one that is ending."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def set_logged_step(trainer: Trainer, step: int) -> None:
    """Set the step under which Lightning logs."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = step


def pending_scalars(trainer: Trainer) -> dict[str, float]:
    """Return the scalars that Lightning is about to log for the training step that is ending, if any."""
    interval = trainer.log_every_n_steps  # type: ignore[attr-defined]
    if not interval or (trainer.global_step % interval and not trainer.should_stop):
        return {}
    return {name: float(value) for name, value in trainer._logger_connector.metrics["log"].items()}


def validation_is_due(trainer: Trainer) -> bool:
    """Return whether Lightning is about to validate after this training step."""
    return trainer.fit_loop.epoch_loop._should_check_val_fx(None)  # type: ignore[arg-type]


def run_validation(trainer: Trainer, *, step: int, epoch: int) -> None:
    """Validate as Lightning does after a training step, and log the metrics under this step and epoch."""
    connector = trainer._logger_connector
    epochs: Any = trainer.fit_loop.epoch_progress.current
    before = connector._first_loop_iter, logged_step(trainer), epochs.processed, epochs.completed
    set_logged_step(trainer, step)
    epochs.processed = epochs.completed = epoch
    trainer.validating = True
    trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training = True
    connector._first_loop_iter, following, epochs.processed, epochs.completed = before
    set_logged_step(trainer, following)


def saved_step(checkpointer: ModelCheckpoint) -> int:
    """Return the step of the last checkpoint that a ModelCheckpoint has saved; 0 if it has saved none."""
    return checkpointer._last_global_step_saved


def set_saved_step(checkpointer: ModelCheckpoint, step: int) -> None:
    """Tell a ModelCheckpoint that this step has been saved."""
    checkpointer._last_global_step_saved = step
