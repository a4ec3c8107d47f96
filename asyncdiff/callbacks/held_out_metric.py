"""Base class of callbacks that evaluate held-out images one by one, such as likelihood and calibration."""

from collections.abc import Mapping

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from asyncdiff.callbacks.ema import ema_weights
from asyncdiff.callbacks.periodic_metric import PeriodicMetric
from asyncdiff.callbacks.split_work import gather_rows, rank_indices
from asyncdiff.callbacks.validation_images import evaluation_images
from asyncdiff.checks import at_least
from asyncdiff.evaluation.held_out_images import Evaluate, evaluate_in_batches, evenly_spaced
from asyncdiff.sampling.engine import evaluation_mode
from asyncdiff.training.lightning_module import AsyncDiffusion


class HeldOutMetric(PeriodicMetric):
    """Computes metrics from one row of numbers per held-out image, evaluated on all processes together.

    The images are spread evenly over the validation split, or the test split in `test`.

    Args:
        name: prefix of the tags, to distinguish several callbacks; may be empty.
        every_n_steps: number of optimizer steps between evaluations; 0 evaluates only at the end of training.
        count: number of held-out images; None means all of them.
        batch_size: number of images that go through the network together.
    """

    def __init__(self, name: str, every_n_steps: int, count: int | None, batch_size: int):
        super().__init__(name, every_n_steps)
        at_least("batch_size", batch_size, 1, "set the number of images per batch")
        self.count = count
        self.batch_size = batch_size

    def evaluate_images(
        self, trainer: Trainer, module: AsyncDiffusion, evaluate: Evaluate, *, labels: bool = True
    ) -> Tensor:
        """Return one row per held-out image, computed with the EMA weights, on the CPU.

        Args:
            trainer: trainer of the run.
            module: module whose network is evaluated.
            evaluate: function that returns the rows of a batch of images, from the images, their labels and their
                positions in the split.
            labels: whether `evaluate` gets labels, if the model has classes.

        Returns:
            The rows, in the order of the images, equal on all processes.
        """
        images = evaluation_images(trainer)
        indices = evenly_spaced(len(images), self.count)
        own = [indices[k] for k in rank_indices(trainer, len(indices))]
        labels, device = labels and module.classes > 0, module.device
        with ema_weights(trainer, module), evaluation_mode(module.denoiser), torch.no_grad():
            batches = evaluate_in_batches(
                images, own, evaluate, batch_size=self.batch_size, device=device, labels=labels
            )
            rows = torch.cat(list(batches))
        return gather_rows(trainer, rows, len(indices))

    def tagged(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return values by tag, with the callback's name as a prefix."""
        return {f"{self.name}/{tag}" if self.name else tag: value for tag, value in values.items()}

    def figure_name(self, name: str) -> str:
        """Return the name of a figure, with the callback's name as a suffix."""
        return f"{name}_{self.name}" if self.name else name
