"""Predictions as PNG files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from asyncdiff.tasks import Request
from asyncdiff.tasks.contact_sheet import create_output_folder, collect_notes, write_images, write_sheet
from asyncdiff.training.module import AsyncDiffusion


class ImageWriter(Callback):
    """Writes every image that `predict` draws to a PNG file, and a sheet of them where a task is given.

    Files are named by seed, and class where one is told; those of photos by the photo, too. A folder that holds
    pictures already is left alone: without a `folder` the next number is taken, a given one is refused. `train.py
    predict` has this callback without being told.

    Args:
        folder: RUN/predictions, and in it one per task, by default; RUN being the trainer's default_root_dir.
    """

    def __init__(self, folder: str | None = None):
        self.folder = folder
        self._folder = Path()

    def on_predict_start(self, trainer: Trainer, pl_module: AsyncDiffusion) -> None:  # type: ignore[override]
        """Settle on a folder, the same on all processes."""
        chosen, refusal = "", ""
        if trainer.is_global_zero:
            task = "" if pl_module.task is None else pl_module.task.name
            usual = Path(trainer.default_root_dir) / "predictions" / task
            try:
                chosen = str(create_output_folder(Path(self.folder or usual), given=self.folder is not None))
            except ValueError as error:  # told to all, so that none waits for ever
                refusal = str(error)
        chosen, refusal = trainer.strategy.broadcast((chosen, refusal))
        if refusal:
            raise ValueError(refusal)
        self._folder = Path(chosen)

    def on_predict_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: AsyncDiffusion, outputs: Tensor, batch: Sequence[Request], *_: Any
    ) -> None:
        """One file per image."""
        write_images(outputs, batch, self._folder)

    def on_predict_end(self, trainer: Trainer, pl_module: AsyncDiffusion) -> None:  # type: ignore[override]
        """The sheet, when all processes have written their files."""
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            requests = pl_module.predict_requests()
            for note in collect_notes(requests):
                rank_zero_info(note)
            if pl_module.task is not None:
                write_sheet(requests, self._folder)
            rank_zero_info(f"{len(requests)} pictures: {self._folder}")
