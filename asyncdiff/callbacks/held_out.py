"""Held-out images for callbacks."""

from typing import Any, Literal

from lightning.pytorch import Trainer


def held_out(trainer: Trainer, count: int | None, split: Literal["val", "test"] = "val") -> Any:
    """A batch of `count` images spread evenly over a held-out split, the same on every process; None for all."""
    data = getattr(trainer, "datamodule", None)
    if data is None or not hasattr(data, "dataset"):
        raise ValueError("held-out images need a data module with a method dataset(split), such as Digits")
    return spread(data.dataset(split).plain(), count)


def spread(images: Any, count: int | None) -> Any:
    """A batch of `count` images of a dataset, evenly over its length; all for None or more."""
    count = len(images) if count is None else min(count, len(images))
    # Files lie in the order of their classes: the first ones would all be of one.
    return images.__getitems__([i * len(images) // count for i in range(count)])
