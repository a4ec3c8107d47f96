"""Make a resumed run log the same curves as an uninterrupted one."""

import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from asyncdiff.callbacks.event_files import remove_events_after
from datamodules.base import accumulated_batches
from datamodules.order import ResumableLoader


class ResumeLogging(Callback):
    """Makes the TensorBoard curves of a resumed run equal to those of an uninterrupted one: each step appears once.

    A checkpoint records when it was written, which scalars of its step had not been logged yet, and whether a
    validation was to follow, which Lightning would skip. A run that resumes from it removes the events written after it
    (it repeats those steps), logs the pending scalars, and starts with the pending validation. If a checkpoint is
    written in the middle of gradient accumulation (`accumulate_grad_batches`), as after some validations, it records
    the position before the current step, since gradients are not saved. This callback also makes a ModelCheckpoint
    with `save_last` that saves every N steps save the last step of the run. `train.py` adds this callback by default.

    Args:
        take_over: in a run that starts from scratch, remove events left in its folder by a crashed run.
    """

    def __init__(self, take_over: bool = False) -> None:
        self.take_over = take_over
        self._resume_state: dict[str, Any] = {}
        self._trainer: Trainer | None = None
        self._step_start = 0.0  # timestamp of the current optimizer step, in seconds since the epoch

    def state_dict(self) -> dict[str, Any]:
        """Return the state of logging and validation, for a run that resumes from this checkpoint."""
        trainer = self._trainer
        if _accumulated_batches(trainer):
            return {"scalars": {}, "validation_due": False, "epoch": 0, "step": 0, "moment": self._step_start}
        # At the end of a step Lightning first runs the hooks that write checkpoints, then logs scalars, then validates.
        ending = trainer is not None and trainer.training and _step_is_ending(trainer)
        return {
            "scalars": _pending_scalars(trainer) if ending and trainer is not None else {},
            "validation_due": bool(ending and trainer is not None and _validation_is_due(trainer)),
            "epoch": 0 if trainer is None else trainer.current_epoch,
            "step": 0 if trainer is None else trainer.fit_loop.epoch_loop._batches_that_stepped,
            "moment": time.time(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Store the state until training starts."""
        self._resume_state = dict(state_dict)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """If gradients are only partly accumulated, set the position back to the first batch of the current step."""
        if not (batches := _accumulated_batches(trainer)):
            return
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            before = counts["processed"] - batches
            counts.update(ready=before, started=before, processed=before, completed=before)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Store the trainer, whose state goes into checkpoints."""
        self._trainer = trainer

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the events of steps that the run will repeat, and log the pending scalars."""
        state = self._resume_state
        for checkpointer in trainer.callbacks if state else ():  # type: ignore[attr-defined]
            if isinstance(checkpointer, ModelCheckpoint) and trainer.ckpt_path:
                # This step already has a checkpoint; Lightning would write a second one after the next batch.
                checkpointer._last_global_step_saved = trainer.global_step
                folder = checkpointer.dirpath
                if folder and Path(trainer.ckpt_path).parent.resolve() == Path(folder).resolve():
                    checkpointer._last_checkpoint_saved = str(trainer.ckpt_path)
        from_scratch = self.take_over and not trainer.ckpt_path
        for logger in trainer.loggers if state or from_scratch else ():
            if isinstance(logger, TensorBoardLogger):
                if trainer.is_global_zero:
                    remove_events_after(Path(logger.log_dir), state.get("moment", 0))
                if state.get("scalars"):
                    logger.log_metrics({**state["scalars"], "epoch": state["epoch"]}, state["step"])
                    logger.save()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Run a pending validation before the first step."""
        self._validate(trainer)
        if not _accumulated_batches(trainer):
            self._step_start = time.time()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run a pending validation, and save the last step with every ModelCheckpoint that saves by steps."""
        self._validate(trainer)
        for checkpointer in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(checkpointer, ModelCheckpoint) and _should_save_last_step(checkpointer, trainer):
                candidates = checkpointer._monitor_candidates(trainer)
                checkpointer._save_topk_checkpoint(trainer, candidates)
                checkpointer._save_last_checkpoint(trainer, candidates)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._trainer = None

    def _validate(self, trainer: Trainer) -> None:
        state, self._resume_state = self._resume_state, {}
        if not state.get("validation_due"):
            return
        # As in Lightning's loop after a step, with its counters set back: they now count the next step or epoch.
        loop, connector = trainer.fit_loop.epoch_loop, trainer._logger_connector
        epochs: Any = trainer.fit_loop.epoch_progress.current
        step, loop._batches_that_stepped = loop._batches_that_stepped, state["step"]
        epoch, epochs.processed = epochs.processed, state["epoch"]
        first, trainer.validating = connector._first_loop_iter, True
        loop.val_loop.run()
        trainer.training = True
        connector._first_loop_iter, loop._batches_that_stepped, epochs.processed = first, step, epoch


def _accumulated_batches(trainer: Trainer | None) -> int:
    """Return how many batches a run resumed from a checkpoint saved now would repeat."""
    loaders = None if trainer is None else trainer.fit_loop._combined_loader
    if trainer is None or loaders is None:
        return 0
    # The position of other loaders cannot be set back, so their runs repeat none.
    return (
        accumulated_batches(trainer) if all(isinstance(loader, ResumableLoader) for loader in loaders.flattened) else 0
    )


def _should_save_last_step(checkpointer: ModelCheckpoint, trainer: Trainer) -> bool:
    """Return whether the last step must still be saved to last.ckpt; Lightning saves only every N steps."""
    by_step = checkpointer._every_n_train_steps > 0 and checkpointer.monitor in (None, "step")
    return bool(checkpointer.save_last) and by_step and not checkpointer._should_skip_saving_checkpoint(trainer)


def _step_is_ending(trainer: Trainer) -> bool:
    """Return whether the hooks at the end of a training step are running."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    return progress.processed == progress.ready == progress.completed + 1


def _pending_scalars(trainer: Trainer) -> dict[str, float]:
    """Return the scalars that Lightning is about to log for this step, if any."""
    connector = trainer._logger_connector
    if trainer.fit_loop._should_accumulate() or not connector.should_update_logs:
        return {}
    return {name: float(value) for name, value in connector.metrics["log"].items()}


def _validation_is_due(trainer: Trainer) -> bool:
    """Return whether Lightning is about to validate after this step."""
    fetcher = trainer.fit_loop._data_fetcher
    return fetcher is not None and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)
