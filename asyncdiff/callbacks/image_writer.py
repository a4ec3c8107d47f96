"""Writing of predicted images to PNG files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from asyncdiff.tasks import Request
from asyncdiff.tasks.contact_sheet import collect_notes, create_output_folder, write_images, write_sheet
from asyncdiff.training.lightning_module import AsyncDiffusion


class ImageWriter(Callback):
    """Writes every image of `predict` to a PNG file, and a contact sheet of them if a task is given.

    File names contain the seed, the class label if there is one, and the name of the photo if there is one. A folder
    that already holds images is never written to: the default folder gets the next free number, a `folder` given here
    is refused. `train.py predict` adds this callback by default.

    Args:
        folder: folder of the files; by default RUN/predictions, or RUN/predictions/TASK if a task is given, where RUN
            is the trainer's default_root_dir.
    """

    def __init__(self, folder: str | None = None):
        self.folder = folder
        self._folder = Path()

    def on_predict_start(self, trainer: Trainer, pl_module: AsyncDiffusion) -> None:  # type: ignore[override]
        """Choose the folder, the same on all processes."""
        chosen, refusal = "", ""
        if trainer.is_global_zero:
            task = "" if pl_module.task is None else pl_module.task.name
            default = Path(trainer.default_root_dir) / "predictions" / task
            try:
                chosen = str(create_output_folder(Path(self.folder or default), explicit=self.folder is not None))
            except ValueError as error:  # broadcast below, so that no process waits forever
                refusal = str(error)
        chosen, refusal = trainer.strategy.broadcast((chosen, refusal))
        if refusal:
            raise ValueError(refusal)
        self._folder = Path(chosen)

    def on_predict_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: AsyncDiffusion, outputs: Tensor, batch: Sequence[Request], *_: Any
    ) -> None:
        """Write one file per image."""
        write_images(outputs, batch, self._folder)

    def on_predict_end(self, trainer: Trainer, pl_module: AsyncDiffusion) -> None:  # type: ignore[override]
        """Write the contact sheet once all processes have written their files."""
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            requests = pl_module.predict_requests()
            for note in collect_notes(requests):
                rank_zero_info(note)
            if pl_module.task is not None:
                write_sheet(requests, self._folder)
            rank_zero_info(f"{len(requests)} images: {self._folder}")
