"""Whether the predicted uncertainty is that of the errors, on held-out images."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from asyncdiff.callbacks.ema import ema_weights
from asyncdiff.callbacks.periodic_metric import PeriodicMetric
from asyncdiff.callbacks.split_work import gather_rows, rank_indices
from asyncdiff.callbacks.validation_images import evaluation_images, evenly_spaced
from asyncdiff.checks import at_least
from asyncdiff.noise.levels import AlongPath
from asyncdiff.noise.paths import AsyncPatch
from asyncdiff.randomness import counter_key, normal, per_image
from asyncdiff.sampling.batched import evaluation_mode
from asyncdiff.shapes import mean_per_patch
from asyncdiff.training.module import AsyncDiffusion

STREAM = 2  # second counter of the random streams: noise and levels of an image are those of no other measurement


@dataclass(frozen=True)
class Reliability:
    """Predicted and actual mean squared errors of the velocity; NaN where a bin has no patches.

    Attributes:
        ratio: mean actual over mean predicted error: 1 is calibrated, above 1 the network is too sure.
        correlation: rank correlation of predicted and actual errors of patches of about one level, mean over the bins:
            0 for a head that tells patches of a level apart by chance. Even an exact head stays below 1, as one error
            scatters around its expectation.
        predicted: mean by level bin.
        actual: mean by level bin.
        grouped_predicted: mean by level bin and quantile group of the prediction, lowest first.
        grouped_actual: the same patches' mean error.
    """

    ratio: float
    correlation: float
    predicted: Float[Tensor, " bins"]
    actual: Float[Tensor, " bins"]
    grouped_predicted: Float[Tensor, "bins groups"]
    grouped_actual: Float[Tensor, "bins groups"]


class Calibration(PeriodicMetric):
    """Logs calibration/ratio and calibration/correlation of a network's uncertainty head on held-out images.

    At one AsyncPatch level map per image, for every patch: the error that the head predicts against that of the
    velocity. calibration_by_level/{predicted, actual}/LOW-HIGH are the means by level; the picture images/calibration
    shows them, and within levels whether patches of a larger predicted error have one. With averaged weights where the
    run has any, in full precision, on images spread evenly over the split; noise and levels depend on the image's place
    in the split only.

    Args:
        count: images of the held-out split; all of them for None.
        bins: equal bins of the level over (0, 1].
        groups: quantile groups of the predicted error within a bin.
        every_n_steps: optimiser steps between two measurements; 0 measures at the end of training only, and in
            `validate` and `test`.
        batch_size: images that go through the network together.
        name: put before the tags, where several callbacks measure different things.
    """

    def __init__(
        self,
        count: int | None = 1024,
        bins: int = 10,
        groups: int = 8,
        every_n_steps: int = 0,
        batch_size: int = 128,
        name: str = "",
    ):
        super().__init__(name, every_n_steps)
        if count is not None:
            at_least("count", count, 1, "1024 give smooth curves, null takes all")
        at_least("bins", bins, 1, "10 shows the shape")
        at_least("groups", groups, 2, "8 show the shape")
        at_least("batch_size", batch_size, 1, "set the images that go through the network together")
        self.count = count
        self.bins = bins
        self.groups = groups
        self.batch_size = batch_size

    def on_fit_start(self, trainer: Trainer, pl_module: AsyncDiffusion) -> None:  # type: ignore[override]
        """Find out now, not at the end of the training, whether there is a head and a held-out image."""
        evaluation_images(trainer)
        with evaluation_mode(pl_module.denoiser), torch.no_grad():
            x = torch.zeros(1, *pl_module.shape, device=pl_module.device)
            t = torch.ones(1, *pl_module.denoiser.grid(pl_module.shape[1:]), device=x.device)
            _logvar(pl_module.denoiser(x, t).logvar, pl_module)

    def measure(self, trainer: Trainer, module: AsyncDiffusion) -> dict[str, float]:
        """The ratio and the correlation over the patches of all images."""
        images = evaluation_images(trainer, "test" if trainer.state.fn == TrainerFn.TESTING else "val")
        indices = evenly_spaced(images, self.count)
        mine, rows = rank_indices(trainer, len(indices)), []
        with ema_weights(trainer, module), evaluation_mode(module.denoiser), torch.no_grad():
            for first in range(0, len(mine), self.batch_size):
                batch = images.__getitems__([indices[k] for k in mine[first : first + self.batch_size]])
                label = batch["label"].to(module.device) if module.classes else None
                rows.append(_errors(module, batch["image"].to(module.device), label, batch["index"].tolist()).cpu())
        t, predicted, actual = gather_rows(trainer, torch.cat(rows), len(indices)).unbind(1)
        found = reliability(t.flatten(), predicted.flatten(), actual.flatten(), self.bins, self.groups)
        self._draw(trainer, found)
        prefix = f"{self.name}/" if self.name else ""
        self.details = {}
        for kind, values in (("predicted", found.predicted), ("actual", found.actual)):
            for k, value in enumerate(values.tolist()):
                if not math.isnan(value):
                    edges = f"{k / self.bins:.3f}-{(k + 1) / self.bins:.3f}"
                    self.details[f"{prefix}calibration_by_level/{kind}/{edges}"] = value
        return {f"{prefix}calibration/ratio": found.ratio, f"{prefix}calibration/correlation": found.correlation}

    def _draw(self, trainer: Trainer, found: Reliability) -> None:
        """RUN/images/calibration.png and the TensorBoard image of that name."""
        if not trainer.is_global_zero:
            return
        from asyncdiff.evaluation.figures.calibration_figure import calibration_figure  # late: matplotlib
        from asyncdiff.evaluation.figures.style import pixels, save

        name = f"calibration_{self.name}" if self.name else "calibration"
        figure = calibration_figure(
            found.predicted,
            found.actual,
            found.grouped_predicted,
            found.grouped_actual,
            note=f"actual / predicted {found.ratio:.3f}, rank correlation {found.correlation:.2f}",
        )
        save(figure, Path(trainer.default_root_dir) / "images" / f"{name}.png")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(f"images/{name}", pixels(figure), trainer.global_step, dataformats="HWC")


def reliability(
    t: Float[Tensor, " n"], predicted: Float[Tensor, " n"], actual: Float[Tensor, " n"], bins: int, groups: int
) -> Reliability:
    """How well predicted errors fit actual ones, for patches of levels `t`; those without noise do not count."""
    noisy = t > 0
    t, predicted, actual = t[noisy].double(), predicted[noisy].double(), actual[noisy].double()
    index = (t * bins).long().clamp(max=bins - 1)
    means, grouped, correlations = [], [], []
    for k in range(bins):
        of_bin = index == k
        order = predicted[of_bin].argsort()
        pair = torch.stack([predicted[of_bin], actual[of_bin]])[:, order]  # (2, patches), by prediction
        means.append(pair.mean(1))
        grouped.append(torch.stack([part.mean(1) for part in pair.tensor_split(groups, dim=1)], dim=1))
        if len(order) > 1:
            correlations.append(rank_correlation(pair[0], pair[1]))
    by_bin, by_group = torch.stack(means, dim=1), torch.stack(grouped, dim=1)
    correlation = math.fsum(correlations) / len(correlations) if correlations else math.nan
    ratio = float(actual.mean() / predicted.mean())
    return Reliability(ratio, correlation, by_bin[0], by_bin[1], by_group[0], by_group[1])


def rank_correlation(a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> float:
    """Spearman's: the correlation of the ranks, equal values sharing theirs. 0 where all are equal: nothing is told."""
    ranks = torch.stack([_ranks(a), _ranks(b)])
    centred = ranks - ranks.mean(1, keepdim=True)
    scale = centred.square().sum(1).prod().sqrt()
    return float(centred.prod(0).sum() / scale) if scale > 0 else 0.0


def _ranks(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    _, index, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[index]


def _errors(
    module: AsyncDiffusion, x: Float[Tensor, "b c h w"], label: Tensor | None, places: list[int]
) -> Float[Tensor, "b 3 patches"]:
    """Level, predicted and actual mean squared error of every patch, at one AsyncPatch map per image."""
    denoiser, process = module.denoiser, module.process
    grid = denoiser.grid((x.shape[2], x.shape[3]))
    generators = per_image(counter_key(place, STREAM) for place in places)
    eps = normal(x.shape, generator=generators, device=x.device)
    t = AlongPath(AsyncPatch())(len(x), grid, generator=generators, device=x.device).t
    prediction = denoiser(process.noised(x, eps, t), t, label)
    predicted = _logvar(prediction.logvar, module).exp()
    actual = mean_per_patch((process.velocity(x, eps, t) - prediction.v).square(), grid)
    return torch.stack([value.flatten(1) for value in (t, predicted, actual)], dim=1)


def _logvar(logvar: Tensor | None, module: AsyncDiffusion) -> Tensor:
    if logvar is None:
        raise ValueError(
            f"Calibration needs a network that predicts its uncertainty, got {type(module.network).__name__} without: "
            "set network.init_args.uncertainty: true, or leave the callback out"
        )
    return logvar
