"""Write predicted images to PNG files."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from asyncdiff.checkpoints.run_lock import hold
from asyncdiff.tasks import Request
from asyncdiff.tasks.arguments import choose_output_folder
from asyncdiff.tasks.contact_sheet import collect_notes, keep_for_sheet, write_images, write_sheet
from asyncdiff.training.lightning_module import AsyncDiffusion


class ImageWriter(Callback):
    """Writes every image from `predict` to a PNG file, and a contact sheet if the model has a task.

    File names contain the seed, and the class label and the name of the photo if there are any. Images are never added
    to a folder that already contains images: the default folder gets the next free number, and an explicit `folder` is
    refused. `train.py predict` adds this callback by default.

    Args:
        folder: output folder; None means RUN/predictions, or RUN/predictions/TASK if the model has a task, where RUN is
            the trainer's default_root_dir.
    """

    def __init__(self, folder: str | None = None):
        self.folder = folder
        self._folder = Path()
        self._held = ExitStack()
        self._written: dict[str, Tensor] = {}  # pixels for the contact sheet

    def on_predict_start(self, trainer: Trainer, pl_module: AsyncDiffusion) -> None:  # type: ignore[override]
        """Choose the folder, the same on all processes."""
        chosen, message = "", ""
        if trainer.is_global_zero:
            task = "" if pl_module.predict.task is None else pl_module.predict.task.name
            default = Path(trainer.default_root_dir) / "predictions" / task
            try:
                folder = choose_output_folder(Path(self.folder or default), explicit=self.folder is not None)
                self._held.enter_context(hold(folder, "being written"))
                chosen = str(folder)
            except (ValueError, OSError) as error:  # broadcast below, so that no process waits forever
                message = str(error)
        chosen, message = trainer.strategy.broadcast((chosen, message))
        if message:
            raise ValueError(message)
        self._folder, self._written = Path(chosen), {}

    def on_predict_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: AsyncDiffusion, outputs: Tensor, batch: Sequence[Request], *_: Any
    ) -> None:
        """Write one file per image."""
        keep_for_sheet(self._written, write_images(outputs, batch, self._folder))

    def on_predict_end(self, trainer: Trainer, pl_module: AsyncDiffusion) -> None:  # type: ignore[override]
        """Write the contact sheet once all processes have written their files."""
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            requests = pl_module.predict_requests()
            for note in collect_notes(requests):
                rank_zero_info(note)
            if pl_module.predict.task is not None:
                write_sheet(requests, self._folder, self._written)
            rank_zero_info(f"{len(requests)} images: {self._folder}")

    def on_exception(self, trainer: Trainer, pl_module: AsyncDiffusion, exception: BaseException) -> None:  # type: ignore[override]
        """Leave the folder to others."""
        self._held.close()

    def teardown(self, trainer: Trainer, pl_module: AsyncDiffusion, stage: str) -> None:  # type: ignore[override]
        """Leave the folder to others."""
        self._held.close()
