"""A run that was interrupted and goes on leaves the same curves as one that was not."""

import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from asyncdiff.event_files import drop_after


class Continuation(Callback):
    """Makes TensorBoard's curves of a continued run those of an uninterrupted one: no step twice, none left out.

    A checkpoint tells when it was written, what was still to be logged of its step, and whether a validation was due
    after it, which Lightning would pass over. A run that goes on from it takes back the events that were written since
    (it computes them again), logs what was left, and validates first where that was due. `train.py` has this callback
    without being told.
    """

    def __init__(self) -> None:
        self._held: dict[str, Any] = {}
        self._trainer: Trainer | None = None

    def state_dict(self) -> dict[str, Any]:
        """What a run that goes on from the checkpoint in the making needs to know."""
        trainer = self._trainer
        # A step ends with the hooks in which checkpoints are written, then its scalars are logged, then it validates.
        ending = trainer is not None and trainer.training and _step_is_ending(trainer)
        return {
            "scalars": _unlogged(trainer) if ending and trainer is not None else {},
            "validation_due": bool(ending and trainer is not None and _validation_is_due(trainer)),
            "epoch": 0 if trainer is None else trainer.current_epoch,
            "step": 0 if trainer is None else trainer.fit_loop.epoch_loop._batches_that_stepped,
            "moment": time.time(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what the checkpoint tells."""
        self._held = dict(state_dict)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Know the trainer, whose state goes into checkpoints."""
        self._trainer = trainer

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take back what comes again, and log what was left."""
        held = self._held
        for logger in trainer.loggers if held else ():
            if isinstance(logger, TensorBoardLogger):
                if trainer.is_global_zero:
                    drop_after(Path(logger.log_dir), held["moment"])
                if held["scalars"]:
                    logger.log_metrics({**held["scalars"], "epoch": held["epoch"]}, held["step"])
                    logger.save()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Validate before the first step, if that is what came next."""
        self._validate(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate now, if the run ended before the first step."""
        self._validate(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the trainer."""
        self._trainer = None

    def _validate(self, trainer: Trainer) -> None:
        held, self._held = self._held, {}
        if not held.get("validation_due"):
            return
        # As Lightning's loop does after a step; by now it counts the next one.
        loop, connector = trainer.fit_loop.epoch_loop, trainer._logger_connector
        step, loop._batches_that_stepped = loop._batches_that_stepped, held["step"]
        first, trainer.validating = connector._first_loop_iter, True
        loop.val_loop.run()
        trainer.training = True
        connector._first_loop_iter, loop._batches_that_stepped = first, step


def _step_is_ending(trainer: Trainer) -> bool:
    """Whether the hooks at the end of a training step are running."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    return progress.processed == progress.ready == progress.completed + 1


def _unlogged(trainer: Trainer) -> dict[str, float]:
    """The scalars that Lightning is about to log of this step; none where it is not."""
    connector = trainer._logger_connector
    if trainer.fit_loop._should_accumulate() or not connector.should_update_logs:
        return {}
    return {name: float(value) for name, value in connector.metrics["log"].items()}


def _validation_is_due(trainer: Trainer) -> bool:
    """Whether Lightning is about to validate after this step."""
    fetcher = trainer.fit_loop._data_fetcher
    return fetcher is not None and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)
