"""Make a resumed run log the same curves as an uninterrupted one."""

import os
import re
import shutil
from collections.abc import Mapping, Set
from itertools import count
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from asyncdiff.callbacks.graceful_shutdown import model_checkpoints, save_last_checkpoint
from asyncdiff.callbacks.tensorboard import tensorboard_loggers
from asyncdiff.checkpoints.atomic_files import open_atomic
from asyncdiff.training.lightning_internals import (
    logged_step,
    pending_scalars,
    run_validation,
    saved_step,
    set_saved_step,
    validation_is_due,
)
from datamodules.base import accumulated_batches
from datamodules.order import ResumableLoader

PREFIX = "events.out.tfevents."
EVENTS = f"{PREFIX}*"


class ResumeLogging(Callback):
    """Makes the TensorBoard curves of a resumed run equal to those of an uninterrupted one: each step appears once.

    A checkpoint records the sizes of the event files, which scalars of its step had not been logged yet, and whether a
    validation was to follow, which Lightning would skip. A run that resumes from it cuts the event files back to these
    sizes (it repeats the steps after it), logs the pending scalars, and starts with the pending validation. Files that
    another program wrote before the checkpoint stay; files that are newer than the checkpoint are renamed to
    superseded.*, which TensorBoard ignores. If a checkpoint is written in the middle of gradient accumulation
    (`accumulate_grad_batches`), as after some validations, it records the position before the current step, since
    gradients are not saved. This callback also saves the last step of a run to the last.ckpt of a ModelCheckpoint with
    `save_last`. `train.py` adds this callback by default.

    Args:
        take_over: in a run that starts from scratch, rename event files left in its folder by a crashed run.
    """

    def __init__(self, take_over: bool = False) -> None:
        self.take_over = take_over
        self._resume_state: dict[str, Any] = {}
        self._trainer: Trainer | None = None
        self._earlier_files: dict[str, int | None] = {}  # the event files that the checkpoint recorded
        self._state_before_step: dict[str, Any] = {}  # at the end of the step before the current one

    def state_dict(self) -> dict[str, Any]:
        """Return the state of logging and validation, for a run that resumes from this checkpoint."""
        if self._trainer is None:
            return {}
        return self._state_before_step if _accumulated_batches(self._trainer) else self._logging_state(self._trainer)

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
        self._earlier_files = state.get("event_files", {})
        for checkpointer in model_checkpoints(trainer) if state else ():
            # This step already has a checkpoint; Lightning would write a second one after the next batch.
            set_saved_step(checkpointer, trainer.global_step)
        from_scratch = self.take_over and not trainer.ckpt_path
        for logger in tensorboard_loggers(trainer) if state or from_scratch else ():
            if trainer.is_global_zero:
                move_behind_earlier_files(logger, earlier=self._earlier_files)
            if "moment" in state:  # a checkpoint of version 0.1, which has no sizes
                _hide_events(logger, trainer.global_step + 1)
            elif trainer.is_global_zero:
                cut_event_files(Path(logger.log_dir), self._earlier_files, keep=own_event_files(trainer))
            if state.get("scalars"):
                logger.log_metrics({**state["scalars"], "epoch": state["epoch"]}, state["step"])
        self._state_before_step = {"event_files": event_file_sizes(trainer, self._earlier_files)}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Run a pending validation before the first step."""
        if self._resume_state:
            self._validate(trainer)
            self._state_before_step = {"event_files": event_file_sizes(trainer, self._earlier_files)}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Store the state after each step, for checkpoints in the middle of the next one."""
        if trainer.accumulate_grad_batches > 1 and not _accumulated_batches(trainer):
            self._state_before_step = self._logging_state(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run a pending validation, and save the last step."""
        self._validate(trainer)
        unsaved = [c for c in model_checkpoints(trainer) if c.save_last and saved_step(c) != trainer.global_step]
        if unsaved and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            save_last_checkpoint(trainer, network_only=all(c.save_weights_only for c in unsaved))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._trainer = None

    def _validate(self, trainer: Trainer) -> None:
        state, self._resume_state = self._resume_state, {}
        if state.get("validation_due"):
            run_validation(trainer, step=state["step"], epoch=state["epoch"])

    def _logging_state(self, trainer: Trainer) -> dict[str, Any]:
        """Return what has been logged, and what Lightning is about to do."""
        # At the end of a step Lightning first runs the hooks that write checkpoints, then logs scalars, then validates.
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
        ending = trainer.training and progress.processed == progress.ready == progress.completed + 1
        return {
            "event_files": event_file_sizes(trainer, self._earlier_files),
            "scalars": pending_scalars(trainer) if ending and not accumulated_batches(trainer) else {},
            "validation_due": ending and validation_is_due(trainer),
            "epoch": trainer.current_epoch,
            "step": logged_step(trainer),
        }


def own_event_files(trainer: Trainer) -> set[str]:
    """Return the names of the event files that this process is writing."""
    # Not by host and process id, which a restarted container has again.
    writers = [logger.experiment._get_file_writer() for logger in tensorboard_loggers(trainer)]
    return {Path(writer.event_writer._file_name).name for writer in writers}


def event_file_sizes(trainer: Trainer, earlier: Mapping[str, int | None]) -> dict[str, int | None]:
    """Return the sizes of this run's event files, with all events written; None for other event files in its folders.

    `earlier` has been recorded by the checkpoint from which the run resumed. It is kept for files that are not here,
    since the run may have had other loggers in between.
    """
    sizes = dict(earlier)
    if not trainer.is_global_zero:
        return sizes
    own = own_event_files(trainer)
    for logger in tensorboard_loggers(trainer):
        logger.experiment.flush()
        for file in Path(logger.log_dir).glob(EVENTS):
            of_this_run = file.name in own or earlier.get(file.name) is not None
            sizes[file.name] = file.stat().st_size if of_this_run else None
    return sizes


def cut_event_files(folder: Path, sizes: Mapping[str, int | None], keep: Set[str]) -> None:
    """Cut event files back to the given sizes, if any, and rename those that `sizes` and `keep` do not name.

    Renamed files are not lost: they may belong to another run. The order of events does not depend on clocks, which may
    have been set back. If this is interrupted, it can be repeated.
    """
    for file in [*folder.glob(EVENTS)]:
        size = sizes.get(file.name)
        if size is not None and file.stat().st_size > size:
            if file.is_symlink() or file.stat().st_nlink > 1:  # a copy of the run's folder may share the file
                with open_atomic(file) as stream, file.open("rb") as events:
                    shutil.copyfileobj(events, stream)
            os.truncate(file, size)
        elif file.name not in sizes and file.name not in keep:
            names = (folder / f"superseded.{n}.{file.name.removeprefix(PREFIX)}" for n in count())
            file.rename(next(name for name in names if not name.exists()))


def move_behind_earlier_files(logger: TensorBoardLogger, earlier: Mapping[str, int | None]) -> None:
    """Rename the new event file of this process if its name, which begins with the time, is not the last one.

    TensorBoard reads files in the order of their names, and forgets the steps of a curve from the step that it reads
    next. If a clock was set back, or that of another node was ahead, it would forget all that a resumed run logs.
    """
    events = logger.experiment._get_file_writer().event_writer
    own = Path(events._file_name)
    dated = re.compile(rf"{re.escape(PREFIX)}(\d+)(\..*)")
    names = [file.name for file in own.parent.glob(EVENTS) if file.name != own.name and dated.fullmatch(file.name)]
    if own.name in earlier or not names or own.name > (last := max(names)):
        return
    logger.experiment.flush()
    (time, _), (_, rest) = (dated.fullmatch(name).groups() for name in (last, own.name))  # type: ignore[union-attr]
    new = own.with_name(f"{PREFIX}{int(time) + 1:0{len(time)}}{rest}")
    own.rename(new)
    events._file_name = str(new)
    events._general_file_writer.filename = str(new).encode()  # it opens the file for every write


@rank_zero_only
def _hide_events(logger: TensorBoardLogger, step: int) -> None:
    """Tell TensorBoard not to show the events that earlier processes logged from `step` on."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # slow import: a second

    logger.experiment.file_writer.add_event(Event(session_log=SessionLog(status=SessionLog.START)), step)


def _accumulated_batches(trainer: Trainer) -> int:
    """Return how many batches a run resumed from a checkpoint saved now would repeat."""
    # The position of other loaders cannot be set back, so their runs repeat none.
    return accumulated_batches(trainer) if isinstance(trainer.train_dataloader, ResumableLoader) else 0
