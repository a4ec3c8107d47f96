"""Bits per dimension of held-out images along several paths, and the path gap, during a run."""

from collections.abc import Mapping

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from asyncdiff.callbacks.ema import averaged_weights
from asyncdiff.callbacks.held_out import held_out
from asyncdiff.callbacks.measurement import Measurement
from asyncdiff.callbacks.sharding import gathered, share
from asyncdiff.checks import at_least
from asyncdiff.evaluation.path_likelihoods import STANDARD_PATHS, PathBounds, PathLikelihoods
from asyncdiff.likelihood import CategoricalDecoder, Decoder
from asyncdiff.masks import Mask
from asyncdiff.module import AsyncDiffusion
from asyncdiff.paths import Path
from asyncdiff.spacings import Spacing
from asyncdiff.tasks import evaluation_mode


class Likelihood(Measurement):
    """Logs bits_per_dim/PATH (nats_per_dim/PATH for latents) of held-out images, and bits_per_dim/path_gap.

    The bound is an equality on every path for a perfect model: the gap, the largest less the smallest mean, says how
    far the network is from one consistent joint score. bits_per_dim_parts/PATH/* are its terms,
    bits_per_dim_by_level/PATH/* the diffusion term by noise level; the images bits/PATH show where in the image the
    bits are. With averaged weights where the run has any, in full precision, on images spread evenly over the split.

    Args:
        paths: path families by name; synchronous, AsyncPatch, an overlapping wavefront and strict raster by default.
        count: images of the held-out split; all of them by default.
        points: evaluations of the network per image and path.
        decoder: `CategoricalDecoder` with the values of the data module by default; `GaussianDecoder` for latents.
        mask: what is known: bounds -log p(unknown | known).
        labels: whether the network is told the images' classes.
        spacing: where on the paths to look; importance sampling of s by default.
        t_min: floor of the paths; what suits the decoder by default.
        every_n_steps: 0 measures at the end of training only, and in `validate` and `test`.
        batch_size: images that go through the network together.
        name: put before the tags, where several callbacks measure different things.
    """

    def __init__(
        self,
        paths: dict[str, Path] | None = None,
        count: int | None = None,
        points: int = 64,
        decoder: Decoder | None = None,
        mask: Mask | None = None,
        labels: bool = True,
        spacing: Spacing | None = None,
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
        self.paths: Mapping[str, Path] = paths or STANDARD_PATHS
        self.count = count
        self.points = points
        self.decoder = decoder
        self.mask = mask
        self.labels = labels
        self.spacing = spacing
        self.t_min = t_min
        self.batch_size = batch_size

    def measure(self, trainer: Trainer, module: AsyncDiffusion) -> dict[str, float]:
        """The bounds per dimension and their gap."""
        batch = held_out(trainer, self.count, "test" if trainer.state.fn == TrainerFn.TESTING else "val")
        images, label = batch["image"], batch["label"] if self.labels and module.classes else None
        values = int(getattr(trainer.datamodule, "values", 256))  # type: ignore[attr-defined]
        decoder = self.decoder or CategoricalDecoder(values)
        bounds = PathBounds(self.paths, self.points, decoder, self.mask, self.spacing, self.t_min)
        mine = torch.tensor(share(trainer, len(images)))
        rows = []
        with averaged_weights(trainer, module), evaluation_mode(module.denoiser):
            for part in mine.split(self.batch_size):
                x = images[part].to(module.device)
                told = None if label is None else label[part].to(module.device)
                rows.append(bounds.rows(module.denoiser, x, told, part.tolist()))
        grid = module.denoiser.grid(module.shape[1:])
        summary = bounds.summary(gathered(trainer, torch.cat(rows), len(images)), grid)
        self._draw(trainer, summary)
        prefix = f"{self.name}/" if self.name else ""
        return {f"{prefix}{tag}": value for tag, value in summary.scalars().items()}

    def _draw(self, trainer: Trainer, summary: PathLikelihoods) -> None:
        """Where the bits are: white is the largest share of all paths, black the smallest."""
        if not trainer.is_global_zero:
            return
        for name, picture in bit_maps(summary).items():
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    tag = f"{self.name}/bits/{name}" if self.name else f"bits/{name}"
                    logger.experiment.add_image(tag, picture, trainer.global_step)


def bit_maps(summary: PathLikelihoods) -> dict[str, Tensor]:
    """The mean bound by patch of every path as pictures (1, height, width) in [0, 1], on one scale."""
    maps = {name: summary.per_patch(name).float() for name in summary.names}
    low, high = min(m.min() for m in maps.values()), max(m.max() for m in maps.values())
    factor = max(1, 128 // max(summary.grid))
    shown = {name: (m - low) / (high - low).clamp(min=1e-12) for name, m in maps.items()}
    return {name: m.repeat_interleave(factor, 0).repeat_interleave(factor, 1)[None] for name, m in shown.items()}
