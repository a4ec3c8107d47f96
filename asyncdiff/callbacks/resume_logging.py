"""A run that was interrupted and goes on leaves the same curves as one that was not."""

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
    """Makes TensorBoard's curves of a continued run those of an uninterrupted one: no step twice, none left out.

    A checkpoint tells when it was written, what was still to be logged of its step, and whether a validation was due
    after it, which Lightning would pass over. A run that goes on from it takes back the events that were written since
    (it computes them again), logs what was left, and validates first where that was due. A checkpoint that is written
    when only a part of a step's gradients has been gathered (`accumulate_grad_batches`), as after some validations,
    tells the state before that step: gradients are not in it. A ModelCheckpoint that keeps every so many steps also
    keeps the last one. `train.py` has this callback without being told.

    Args:
        take_over: where a run begins anew, drop the events of one that died in its folder, as if it had not been.
    """

    def __init__(self, take_over: bool = False) -> None:
        self.take_over = take_over
        self._resume_state: dict[str, Any] = {}
        self._trainer: Trainer | None = None
        self._step_began = 0.0  # seconds since the epoch

    def state_dict(self) -> dict[str, Any]:
        """What a run that goes on from the checkpoint in the making needs to know."""
        trainer = self._trainer
        if _accumulated_batches(trainer):
            return {"scalars": {}, "validation_due": False, "epoch": 0, "step": 0, "moment": self._step_began}
        # A step ends with the hooks in which checkpoints are written, then its scalars are logged, then it validates.
        ending = trainer is not None and trainer.training and _step_is_ending(trainer)
        return {
            "scalars": _pending_scalars(trainer) if ending and trainer is not None else {},
            "validation_due": bool(ending and trainer is not None and _validation_is_due(trainer)),
            "epoch": 0 if trainer is None else trainer.current_epoch,
            "step": 0 if trainer is None else trainer.fit_loop.epoch_loop._batches_that_stepped,
            "moment": time.time(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what the checkpoint tells."""
        self._resume_state = dict(state_dict)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go back to the first batch of a step of which only a part has been gathered."""
        if not (batches := _accumulated_batches(trainer)):
            return
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            before = counts["processed"] - batches
            counts.update(ready=before, started=before, processed=before, completed=before)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Know the trainer, whose state goes into checkpoints."""
        self._trainer = trainer

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take back what comes again, and log what was left."""
        held = self._resume_state
        for writer in trainer.callbacks if held else ():  # type: ignore[attr-defined]
            if isinstance(writer, ModelCheckpoint) and trainer.ckpt_path:
                # Of this step there is a checkpoint; Lightning would write a second one after its next batch.
                writer._last_global_step_saved = trainer.global_step
                if writer.dirpath and Path(trainer.ckpt_path).parent.resolve() == Path(writer.dirpath).resolve():
                    writer._last_checkpoint_saved = str(trainer.ckpt_path)
        anew = self.take_over and not trainer.ckpt_path
        for logger in trainer.loggers if held or anew else ():
            if isinstance(logger, TensorBoardLogger):
                if trainer.is_global_zero:
                    remove_events_after(Path(logger.log_dir), held.get("moment", 0))
                if held.get("scalars"):
                    logger.log_metrics({**held["scalars"], "epoch": held["epoch"]}, held["step"])
                    logger.save()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Validate before the first step, if that is what came next."""
        self._validate(trainer)
        if not _accumulated_batches(trainer):
            self._step_began = time.time()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate now, if the run ended before the first step, and keep the last step where steps are kept."""
        self._validate(trainer)
        for writer in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(writer, ModelCheckpoint) and _saves_last_step(writer, trainer):
                at = writer._monitor_candidates(trainer)
                writer._save_topk_checkpoint(trainer, at)
                writer._save_last_checkpoint(trainer, at)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the trainer."""
        self._trainer = None

    def _validate(self, trainer: Trainer) -> None:
        held, self._resume_state = self._resume_state, {}
        if not held.get("validation_due"):
            return
        # As Lightning's loop does after a step; by now it counts the next one, maybe of the next epoch.
        loop, connector = trainer.fit_loop.epoch_loop, trainer._logger_connector
        epochs: Any = trainer.fit_loop.epoch_progress.current
        step, loop._batches_that_stepped = loop._batches_that_stepped, held["step"]
        epoch, epochs.processed = epochs.processed, held["epoch"]
        first, trainer.validating = connector._first_loop_iter, True
        loop.val_loop.run()
        trainer.training = True
        connector._first_loop_iter, loop._batches_that_stepped, epochs.processed = first, step, epoch


def _accumulated_batches(trainer: Trainer | None) -> int:
    """Batches that come again after a checkpoint of now, since their gradients are not in it."""
    loaders = None if trainer is None else trainer.fit_loop._combined_loader
    if trainer is None or loaders is None:
        return 0
    # Loaders of another kind tell a place of their own, of which nothing can be taken back.
    return accumulated_batches(trainer) if all(isinstance(loader, ResumableLoader) for loader in loaders.flattened) else 0


def _saves_last_step(writer: ModelCheckpoint, trainer: Trainer) -> bool:
    """Whether last.ckpt is to be the last step's, which Lightning writes at multiples of an interval only."""
    by_step = writer._every_n_train_steps > 0 and writer.monitor in (None, "step")
    return bool(writer.save_last) and by_step and not writer._should_skip_saving_checkpoint(trainer)


def _step_is_ending(trainer: Trainer) -> bool:
    """Whether the hooks at the end of a training step are running."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    return progress.processed == progress.ready == progress.completed + 1


def _pending_scalars(trainer: Trainer) -> dict[str, float]:
    """The scalars that Lightning is about to log of this step; none where it is not."""
    connector = trainer._logger_connector
    if trainer.fit_loop._should_accumulate() or not connector.should_update_logs:
        return {}
    return {name: float(value) for name, value in connector.metrics["log"].items()}


def _validation_is_due(trainer: Trainer) -> bool:
    """Whether Lightning is about to validate after this step."""
    fetcher = trainer.fit_loop._data_fetcher
    return fetcher is not None and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)
