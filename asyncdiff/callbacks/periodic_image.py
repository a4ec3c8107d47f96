"""Base class of callbacks that draw images during a run: handles the schedule, the EMA weights and the files."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch.nn.functional as F
from jaxtyping import Float
from lightning.pytorch import Trainer
from torch import Tensor
from torchvision.utils import make_grid, save_image

from asyncdiff.callbacks.ema import ema_weights
from asyncdiff.callbacks.every_n_steps import PeriodicCallback
from asyncdiff.callbacks.tensorboard import tensorboard_loggers
from asyncdiff.callbacks.throughput import untimed
from asyncdiff.checkpoints.atomic_files import open_atomic
from asyncdiff.checks import at_least
from asyncdiff.memory import available_memory, check_memory
from asyncdiff.sampling.samplers import ImageSampler
from asyncdiff.training.lightning_module import AsyncDiffusion

RGBImage = Float[Tensor, "3 height width"]  # values in [0, 1]

BYTES = 4  # of a 32-bit number
MIN_TILE = 64  # pixels; smaller images are enlarged by an integer factor for visibility


class PeriodicImage(PeriodicCallback):
    """Draws an image every `every_n_steps` optimizer steps and at the end of training, with the EMA weights.

    All processes take part; the first one writes RUN/images/NAME.png (the latest image), RUN/images/NAME_STEP.png and
    the TensorBoard image images/NAME. RUN is the trainer's default_root_dir.

    Args:
        name: name of the files and of the TensorBoard tag.
        every_n_steps: number of optimizer steps between images; 0 draws only at the end of training.
        count: number of samples in the image.
        sampler: sampler of the samples; None means the model's own.
    """

    def __init__(self, name: str, every_n_steps: int = 1000, count: int = 1, sampler: ImageSampler | None = None):
        super().__init__(name, every_n_steps)
        at_least("count", count, 1, "set the number of images")
        self.count = count
        self.sampler = sampler

    @abstractmethod
    def draw(self, trainer: Trainer, module: AsyncDiffusion) -> RGBImage:
        """Return the image; called on all processes, with the EMA weights swapped in."""

    def on_fit_start(self, trainer: Trainer, pl_module: AsyncDiffusion) -> None:  # type: ignore[override]
        """Raise ValueError if the images would not fit into memory."""
        _, height, width = pl_module.shape
        one, free = 3 * max(MIN_TILE, height) * max(MIN_TILE, width) * BYTES, available_memory()
        remedy = f"use at most {free // one}"
        check_memory(f"{type(self).__name__}: count", self.count, self.count * one, remedy, available=free)

    def run(self, trainer: Trainer, module: AsyncDiffusion) -> None:
        """Draw the image and write it."""
        with untimed(trainer), ema_weights(trainer, module):
            image = self.draw(trainer, module)
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir) / "images"
        folder.mkdir(parents=True, exist_ok=True)
        for file in (f"{self.name}.png", f"{self.name}_{trainer.global_step:07d}.png"):
            with open_atomic(folder / file) as stream:  # a report may be reading it
                save_image(image, stream, format="png")
        for logger in tensorboard_loggers(trainer):
            logger.experiment.add_image(f"images/{self.name}", image, trainer.global_step)


def tile_images(images: Float[Tensor, "n c h w"], *, columns: int, low: float = -1.0) -> RGBImage:
    """Arrange images with values in [low, 1] in an RGB grid; small images are enlarged by an integer factor."""
    factor = max(1, -(-MIN_TILE // max(images.shape[2:])))
    tiles = ((images.detach().float().cpu() - low) / (1 - low)).clamp(0, 1)
    if tiles.shape[1] not in (1, 3):
        raise ValueError(
            f"images must have 1 or 3 channels to be drawn, got {tiles.shape[1]}: set model.codec to decode latents"
        )
    tiles = F.interpolate(tiles.expand(-1, 3, -1, -1), scale_factor=factor, mode="nearest")
    return make_grid(tiles, nrow=columns, padding=2, pad_value=1.0)


def cycle_labels(module: AsyncDiffusion, indices: Sequence[int]) -> list[int] | None:
    """Return one class label per image index, cycling through all classes; None for an unconditional model."""
    return [i % module.classes for i in indices] if module.classes else None
