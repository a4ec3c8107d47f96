"""Predictions as PNG files."""

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor
from torchvision.utils import save_image

from asyncdiff.module import AsyncDiffusion


class ImageWriter(BasePredictionWriter):
    """Writes every image that `predict` draws to FOLDER/SEED.png, with its class in the name where there are any.

    Args:
        folder: RUN/predictions by default, RUN being the trainer's default_root_dir.
    """

    def __init__(self, folder: str | None = None):
        super().__init__(write_interval="batch")
        self.folder = folder

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Tensor,
        batch_indices: Sequence[int] | None,
        batch: dict[str, Tensor],
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """One file per image."""
        assert isinstance(pl_module, AsyncDiffusion)
        folder = Path(self.folder or Path(trainer.default_root_dir) / "predictions")
        folder.mkdir(parents=True, exist_ok=True)
        for image, seed, label in zip(prediction, batch["seed"].tolist(), batch["label"].tolist(), strict=True):
            suffix = f"_class{label}" if pl_module.classes else ""
            save_image((image.float() + 1) / 2, folder / f"{seed:06d}{suffix}.png")
