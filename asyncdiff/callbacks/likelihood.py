"""Bits per dimension of held-out images along several paths, and the path gap, during a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn

from asyncdiff.callbacks.ema import ema_weights
from asyncdiff.callbacks.periodic_metric import PeriodicMetric
from asyncdiff.callbacks.split_work import gather_rows, rank_indices
from asyncdiff.callbacks.validation_images import evaluation_images, evenly_spaced
from asyncdiff.checks import at_least
from asyncdiff.denoising.likelihood import CategoricalDecoder, Decoder
from asyncdiff.evaluation.likelihood_by_path import STANDARD_PATHS, PathLikelihoodEvaluator, PathLikelihoods, check_labels
from asyncdiff.noise.masks import Mask
from asyncdiff.noise.paths import Path as NoisePath
from asyncdiff.noise.progress import ProgressSampler
from asyncdiff.sampling.batched import evaluation_mode
from asyncdiff.training.module import AsyncDiffusion


class Likelihood(PeriodicMetric):
    """Logs bits_per_dim/PATH (nats_per_dim/PATH for latents) of held-out images, and bits_per_dim/path_gap.

    The bound is an equality on every path for a perfect model. The gap says how far the network is from one consistent
    joint score: it is that of the loosest path above the tightest, which are chosen on one half of the images and
    compared on the other. bits_per_dim_parts/PATH/* are its terms,
    bits_per_dim_by_level/PATH/* the diffusion term by noise level; the picture images/bits shows where in the image
    they are. With averaged weights where the run has any, in full precision, on images spread evenly over the split.

    Args:
        paths: path families by name; synchronous, AsyncPatch, an overlapping wavefront and strict raster by default.
        count: images of the held-out split; all of them by default.
        points: evaluations of the network per image and path.
        decoder: `CategoricalDecoder` with the values of the data module by default; `GaussianDecoder` for latents.
        mask: what is known: bounds -log p(unknown | known).
        labels: whether the network is told the images' classes.
        spacing: where on the paths to look; importance sampling of s by default.
        t_min: floor of the paths; what suits the decoder by default.
        every_n_steps: optimiser steps between two measurements; 0 measures at the end of training only, and in
            `validate` and `test`.
        batch_size: images that go through the network together.
        name: put before the tags, where several callbacks measure different things.
    """

    def __init__(
        self,
        paths: dict[str, NoisePath] | None = None,
        count: int | None = None,
        points: int = 64,
        decoder: Decoder | None = None,
        mask: Mask | None = None,
        labels: bool = True,
        progress_sampler: ProgressSampler | None = None,
        t_min: float | None = None,
        every_n_steps: int = 0,
        batch_size: int = 128,
        name: str = "",
    ):
        super().__init__(name, every_n_steps)
        if count is not None:
            at_least("count", count, 2, "a standard error needs two images")
        at_least("points", points, 2, "64 is usual")
        at_least("batch_size", batch_size, 1, "set the images that go through the network together")
        self.paths: Mapping[str, NoisePath] = paths or STANDARD_PATHS
        self.count = count
        self.points = points
        self.decoder = decoder
        self.mask = mask
        self.labels = labels
        self.progress_sampler = progress_sampler
        self.t_min = t_min
        self.batch_size = batch_size

    def on_fit_start(self, trainer: Trainer, pl_module: AsyncDiffusion) -> None:  # type: ignore[override]
        """Find out now, not at the end of the training, whether everything fits the data and the model."""
        self._checked(trainer, pl_module, evaluation_images(trainer))

    def measure(self, trainer: Trainer, module: AsyncDiffusion) -> dict[str, float]:
        """The bounds per dimension and their gap."""
        images = evaluation_images(trainer, "test" if trainer.state.fn == TrainerFn.TESTING else "val")
        bounds = self._checked(trainer, module, images)
        indices = evenly_spaced(images, self.count)
        mine = rank_indices(trainer, len(indices))
        rows = []
        with ema_weights(trainer, module), evaluation_mode(module.denoiser), torch.no_grad():
            for first in range(0, len(mine), self.batch_size):
                part = mine[first : first + self.batch_size]
                batch = images.__getitems__([indices[k] for k in part])
                label = batch["label"].to(module.device) if self.labels and module.classes else None
                # By the place in the split: a file that cannot be read is left out of its batch.
                seeds = batch["index"].tolist()
                rows.append(bounds.rows(module.denoiser, batch["image"].to(module.device), label, seeds).cpu())
        grid = module.denoiser.grid(module.shape[1:])
        summary = bounds.summary(gather_rows(trainer, torch.cat(rows), len(indices)), grid)
        self._draw(trainer, summary)
        prefix = f"{self.name}/" if self.name else ""
        self.details = {f"{prefix}{tag}": value for tag, value in summary.details().items()}
        return {f"{prefix}{tag}": value for tag, value in summary.scalars().items()}

    def _checked(self, trainer: Trainer, module: AsyncDiffusion, images: Any) -> PathLikelihoodEvaluator:
        data = trainer.datamodule  # type: ignore[attr-defined]
        decoder = self.decoder or CategoricalDecoder(int(getattr(data, "values", 256)))
        bounds = PathLikelihoodEvaluator(self.paths, self.points, decoder, self.mask, self.progress_sampler, self.t_min)
        check_labels(module, getattr(data, "classes", None), told=self.labels)
        bounds.check(module.denoiser, images.__getitems__(evenly_spaced(images, 4))["image"])
        return bounds

    def _draw(self, trainer: Trainer, summary: PathLikelihoods) -> None:
        """RUN/images/bits.png and the TensorBoard image of that name."""
        if not trainer.is_global_zero:
            return
        from asyncdiff.evaluation.figures.bits_figure import bits_figure  # late: matplotlib
        from asyncdiff.evaluation.figures.style import pixels, save

        name = f"bits_{self.name}" if self.name else "bits"
        figure = bits_figure(summary)
        save(figure, Path(trainer.default_root_dir) / "images" / f"{name}.png")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(f"images/{name}", pixels(figure), trainer.global_step, dataformats="HWC")
