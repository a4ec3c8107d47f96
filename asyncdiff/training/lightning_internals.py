"""The only place that names private attributes of Lightning; a test notices if a new version renames one."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch import nn


def attached_trainer(module: LightningModule) -> Trainer | None:
    """Return the trainer of a module, or None outside a run, where `module.trainer` raises."""
    return module._trainer


def keep_gradients_in_buckets(trainer: Trainer) -> None:
    """Let the gradients of DDP be views of the buckets that it sums, unless the strategy says otherwise.

    This saves a copy of all gradients, and the memory for it; their values are the same.
    """
    if isinstance(strategy := trainer.strategy, DDPStrategy):
        strategy._ddp_kwargs.setdefault("gradient_as_bucket_view", True)


def leave_inputs_of_ddp(trainer: Trainer) -> None:
    """Let DDP leave the inputs of a step where they are: it would copy what stays on the host, and wait for the GPU.

    Lightning has moved the batch; a data module may keep keys and indices on the host.
    """
    if isinstance(strategy := trainer.strategy, DDPStrategy):
        strategy._setup_model = partial(_setup_without_device, strategy)  # type: ignore[method-assign, assignment]


def _setup_without_device(strategy: DDPStrategy, model: nn.Module) -> nn.Module:
    """Wrap the model in DDP; only here, since barriers must know the GPU."""
    strategy.determine_ddp_device_ids = lambda: None  # type: ignore[method-assign]
    try:
        return type(strategy)._setup_model(strategy, model)
    finally:
        del strategy.determine_ddp_device_ids


def logged_step(trainer: Trainer) -> int:
    """Return the step under which Lightning logs: the number of completed steps, without the one that is ending."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def set_logged_step(trainer: Trainer, step: int) -> None:
    """Set the step under which Lightning logs."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = step


def set_epoch(trainer: Trainer, epoch: int) -> None:
    """Set the epoch under which Lightning logs."""
    epochs: Any = trainer.fit_loop.epoch_progress.current
    epochs.processed = epochs.completed = epoch


def correct_epoch(checkpoint: dict[str, Any]) -> None:
    """Make a checkpoint count an epoch as completed only if all its batches are.

    Lightning counts the epoch in which a run ends, so that a longer run that resumes there would be an epoch ahead.
    """
    loop = checkpoint.get("loops", {}).get("fit_loop")
    if not loop:
        return
    batches, epochs = loop["epoch_loop.batch_progress"], loop["epoch_progress"]
    if not batches["current"]["processed"] or batches["is_last_batch"]:
        return
    for counts in (epochs["current"], epochs["total"]):
        if counts["processed"] == counts["ready"] > 0:
            counts["processed"] = counts["completed"] = counts["ready"] - 1
            checkpoint["epoch"] = epochs["current"]["processed"]


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
    set_epoch(trainer, epoch)
    trainer.validating = True
    trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training = True
    connector._first_loop_iter, following, epochs.processed, epochs.completed = before
    set_logged_step(trainer, following)


def ask_for_sigterm(trainer: Trainer, *, ask: bool) -> None:
    """Set whether every step starts with the question to the first process whether it has received SIGTERM.

    The answer is read from the device, which waits for all work so far.
    """
    loop: Any = trainer.fit_loop.epoch_loop
    vars(loop).pop("_broadcast_sigterm_tensor", None)  # the method of the class again
    if not ask:
        loop._broadcast_sigterm_tensor = _do_nothing


def _do_nothing() -> None:
    pass


def saved_step(checkpointer: ModelCheckpoint) -> int:
    """Return the step of the last checkpoint that a ModelCheckpoint has saved; 0 if it has saved none."""
    return checkpointer._last_global_step_saved


def set_saved_step(checkpointer: ModelCheckpoint, step: int) -> None:
    """Tell a ModelCheckpoint that this step has been saved."""
    checkpointer._last_global_step_saved = step


def set_saved_file(checkpointer: ModelCheckpoint, path: str) -> None:
    """Tell a ModelCheckpoint that this file has been saved; it saves last.ckpt at the end of a run without any."""
    checkpointer._last_checkpoint_saved = path


def take_deferral(checkpointer: ModelCheckpoint) -> bool:
    """Return whether a ModelCheckpoint has put off a checkpoint until the next validation, and call that off."""
    deferred, checkpointer._defer_save_until_validation = checkpointer._defer_save_until_validation, False
    return deferred


def saves_at_epoch_end(checkpointer: ModelCheckpoint) -> bool:
    """Return whether a ModelCheckpoint may save at the end of an epoch, rather than of a validation only."""
    return checkpointer._save_on_train_epoch_end is not False


def save_due_checkpoint(checkpointer: ModelCheckpoint, trainer: Trainer, metrics: Mapping[str, float]) -> None:
    """Save as a ModelCheckpoint does when a checkpoint is due.

    Args:
        checkpointer: the ModelCheckpoint.
        trainer: its trainer.
        metrics: values of monitored metrics that the trainer does not know; those that are missing are the worst.
    """
    candidates, monitor = checkpointer._monitor_candidates(trainer), checkpointer.monitor
    if monitor is None or monitor in candidates:
        checkpointer._save_topk_checkpoint(trainer, candidates)
    elif checkpointer.save_top_k != 0:
        worst = torch.tensor(math.inf if checkpointer.mode == "min" else -math.inf)
        candidates[monitor] = torch.tensor(metrics[monitor]) if monitor in metrics else worst
        kth = checkpointer.best_k_models.get(checkpointer.kth_best_model_path)
        # ModelCheckpoint would keep the older of two files of which neither has a metric.
        if checkpointer.check_monitor_top_k(trainer, candidates[monitor]) or (
            monitor not in metrics and kth is not None and torch.equal(kth.cpu(), worst)
        ):
            checkpointer._update_best_and_save(candidates[monitor], trainer, candidates)
    checkpointer._save_last_checkpoint(trainer, candidates)
