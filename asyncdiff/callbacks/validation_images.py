"""Select held-out images for callbacks, without augmentation."""

from collections.abc import Sequence
from typing import Any, Literal

from lightning.pytorch import Trainer


def validation_batch(trainer: Trainer, count: int) -> Any:
    """Return a batch of `count` images spread evenly over the validation split, the same on every process."""
    images = evaluation_images(trainer)
    return images.__getitems__(evenly_spaced_indices(images, count))


def evaluation_images(trainer: Trainer, split: Literal["val", "test"] = "val") -> Any:
    """Return the images of a held-out split, without augmentation."""
    data = getattr(trainer, "datamodule", None)
    if data is None or not hasattr(data, "dataset"):
        raise ValueError(
            f"held-out images need a data module with a method `dataset`, got {type(data).__name__}: "
            "use a class of the package datamodules"
        )
    return data.dataset(split).plain()


def evenly_spaced_indices(images: Any, count: int | None) -> Sequence[int]:
    """Return the indices of `count` images spread evenly over a dataset, or all indices if it is None or too large."""
    count = len(images) if count is None else min(count, len(images))
    # Files are sorted by class, so the first ones would all belong to one class.
    return [i * len(images) // count for i in range(count)]
