"""Held-out images for callbacks."""

from collections.abc import Sequence
from typing import Any, Literal

from lightning.pytorch import Trainer


def validation_batch(trainer: Trainer, count: int) -> Any:
    """A batch of `count` images spread evenly over the validation split, the same on every process."""
    images = evaluation_images(trainer)
    return images.__getitems__(evenly_spaced(images, count))


def evaluation_images(trainer: Trainer, split: Literal["val", "test"] = "val") -> Any:
    """The images of a held-out split, without augmentation."""
    data = getattr(trainer, "datamodule", None)
    if data is None or not hasattr(data, "dataset"):
        raise ValueError("held-out images need a data module with a method dataset(split), such as Digits")
    return data.dataset(split).plain()


def evenly_spaced(images: Any, count: int | None) -> Sequence[int]:
    """Indices of `count` images, evenly over the length of a dataset; all for None or more."""
    count = len(images) if count is None else min(count, len(images))
    # Files lie in the order of their classes: the first ones would all be of one.
    return [i * len(images) // count for i in range(count)]
