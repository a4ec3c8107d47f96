"""Select held-out images for callbacks, without augmentation."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from asyncdiff.callbacks.ema import ema_weights
from asyncdiff.callbacks.split_work import gather_rows, rank_indices
from asyncdiff.sampling.engine import evaluation_mode
from asyncdiff.training.lightning_module import AsyncDiffusion


def validation_batch(trainer: Trainer, count: int) -> Any:
    """Return a batch of `count` images spread evenly over the validation split, the same on every process."""
    images = evaluation_images(trainer)
    return images.__getitems__(evenly_spaced_indices(images, count))


def evaluation_images(trainer: Trainer) -> Any:
    """Return the images of the test split in `test`, otherwise of the validation split, without augmentation."""
    data = getattr(trainer, "datamodule", None)
    if data is None or not hasattr(data, "dataset"):
        raise ValueError(
            f"held-out images need a data module with a method `dataset`, got {type(data).__name__}: "
            "use a class of the package datamodules"
        )
    return data.dataset("test" if trainer.state.fn == TrainerFn.TESTING else "val").plain()


def evenly_spaced_indices(images: Any, count: int | None) -> Sequence[int]:
    """Return the indices of `count` images spread evenly over a dataset, or all indices if it is None or too large."""
    count = len(images) if count is None else min(count, len(images))
    # Files are sorted by class, so the first ones would all belong to one class.
    return [i * len(images) // count for i in range(count)]


def evaluate_images(
    trainer: Trainer,
    module: AsyncDiffusion,
    *,
    count: int | None,
    batch_size: int,
    evaluate: Callable[[Tensor, Tensor | None, list[int]], Tensor],
) -> Tensor:
    """Return one row per held-out image, computed with the EMA weights on all processes together, on the CPU.

    `evaluate` gets a batch of images, their labels (None if the model has no classes) and their positions in the split.
    The images are `count` of `evaluation_images`, spread evenly; None means all of them.
    """
    images = evaluation_images(trainer)
    indices = evenly_spaced_indices(images, count)
    own, rows = rank_indices(trainer, len(indices)), []
    with ema_weights(trainer, module), evaluation_mode(module.denoiser), torch.no_grad():
        for first in range(0, len(own), batch_size):
            batch = images.__getitems__([indices[k] for k in own[first : first + batch_size]])
            label = batch["label"].to(module.device) if module.classes else None
            # Positions come from the batch, since unreadable files are missing in it.
            rows.append(evaluate(batch["image"].to(module.device), label, batch["index"].tolist()).cpu())
    return gather_rows(trainer, torch.cat(rows), len(indices))
