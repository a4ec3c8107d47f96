"""Predictions as PNG files."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torchvision.utils import save_image

from asyncdiff.module import AsyncDiffusion


class ImageWriter(Callback):
    """Writes every image that `predict` draws to FOLDER/SEED.png, with its class in the name where there are any.

    Args:
        folder: RUN/predictions by default, RUN being the trainer's default_root_dir.
    """

    def __init__(self, folder: str | None = None):
        self.folder = folder

    def on_predict_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: AsyncDiffusion, outputs: Tensor, batch: dict[str, Tensor], *_: Any
    ) -> None:
        """One file per image."""
        folder = Path(self.folder or Path(trainer.default_root_dir) / "predictions")
        folder.mkdir(parents=True, exist_ok=True)
        for image, seed, label in zip(outputs, batch["seed"].tolist(), batch["label"].tolist(), strict=True):
            suffix = f"_class{label}" if pl_module.classes else ""
            save_image((image.float() + 1) / 2, folder / f"{seed:06d}{suffix}.png")
