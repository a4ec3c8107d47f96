"""Select held-out images for callbacks, without augmentation."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn

from asyncdiff.evaluation.held_out_images import evenly_spaced


def validation_batch(trainer: Trainer, count: int) -> Any:
    """Return a batch of `count` images spread evenly over the validation split, the same on every process."""
    images = evaluation_images(trainer)
    return images.__getitems__(evenly_spaced(len(images), count))


def evaluation_images(trainer: Trainer) -> Any:
    """Return the images of the test split in `test`, otherwise of the validation split, without augmentation."""
    data = data_module(trainer, "dataset", user="held-out images need")
    return data.dataset("test" if trainer.state.fn == TrainerFn.TESTING else "val").plain()


def data_module(trainer: Trainer, method: str, *, user: str) -> Any:
    """Return the trainer's data module; raise ValueError if it lacks a method, naming the user, as in "X needs"."""
    data = getattr(trainer, "datamodule", None)
    if not hasattr(data, method):
        raise ValueError(
            f"{user} a data module with a method `{method}`, got {type(data).__name__}: "
            "use a class of the package datamodules"
        )
    return data
