"""Evaluate the calibration of the uncertainty head: compare predicted with actual errors on held-out images."""

import math
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from lightning.pytorch import Trainer
from torch import Tensor

from asyncdiff.callbacks.held_out_metric import HeldOutMetric
from asyncdiff.callbacks.loss_by_level import MAX_BINS, level_bins
from asyncdiff.callbacks.tensorboard import log_figure
from asyncdiff.callbacks.validation_images import evaluation_images
from asyncdiff.checks import at_least
from asyncdiff.noise.level_samplers import AlongPath
from asyncdiff.noise.paths import AsyncPatch
from asyncdiff.randomness import counter_key, normal, per_image
from asyncdiff.sampling.engine import evaluation_mode
from asyncdiff.shapes import mean_per_patch
from asyncdiff.training.lightning_module import AsyncDiffusion

STREAM = 2  # second counter of the random streams, so that noise and levels differ from those of other metrics


@dataclass(frozen=True)
class Reliability:
    """Predicted and actual mean squared errors of the velocity; NaN where a bin has no patches.

    Attributes:
        ratio: mean actual error divided by mean predicted error: 1 is calibrated, above 1 the network is overconfident.
        correlation: rank correlation of predicted and actual errors among patches of about the same level, averaged
            over the level bins: 0 if the head cannot rank patches of equal level. Even an exact head stays below 1,
            since a single error scatters around its expectation.
        predicted: mean predicted error by level bin.
        actual: mean actual error by level bin.
        grouped_predicted: mean predicted error by level bin and quantile group of the prediction, lowest first.
        grouped_actual: mean actual error of the same patches.
    """

    ratio: float
    correlation: float
    predicted: Float[Tensor, " bins"]
    actual: Float[Tensor, " bins"]
    grouped_predicted: Float[Tensor, "bins groups"]
    grouped_actual: Float[Tensor, "bins groups"]


class Calibration(HeldOutMetric):
    """Logs calibration/ratio and calibration/correlation of a network's uncertainty head on held-out images.

    Every image is noised with one AsyncPatch level map, and for every patch the predicted error is compared with the
    actual error of the velocity. calibration_by_level/{predicted, actual}/LOW-HIGH are the means by level. The figure
    images/calibration shows them, and whether patches of equal level with a larger predicted error have a larger actual
    error. Uses the EMA weights if the run has any, full precision, and images spread evenly over the split. Noise and
    levels depend only on the image's position in the split.

    Args:
        count: number of held-out images; None means all of them.
        bins: number of equal bins of the level over (0, 1].
        groups: number of quantile groups of the predicted error within a bin.
        every_n_steps: number of optimizer steps between evaluations; 0 evaluates only at the end of training, and in
            `validate` and `test`.
        batch_size: number of images that go through the network together.
        name: prefix of the tags, to distinguish several callbacks.
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
        if count is not None:
            at_least("count", count, 1, "use 1024 for smooth curves, or null for all images")
        at_least("bins", bins, 1, "use 10, for example", MAX_BINS)
        at_least("groups", groups, 2, "use 8, for example", MAX_BINS)
        super().__init__(name, every_n_steps, count, batch_size)
        self.bins = bins
        self.groups = groups

    def on_fit_start(self, trainer: Trainer, pl_module: AsyncDiffusion) -> None:  # type: ignore[override]
        """Check before training that the network has an uncertainty head and the data has held-out images."""
        evaluation_images(trainer)
        with evaluation_mode(pl_module.denoiser), torch.no_grad():
            x = torch.zeros(1, *pl_module.shape, device=pl_module.device)
            t = torch.ones(1, *pl_module.denoiser.grid(pl_module.shape[1:]), device=x.device)
            _require_logvar(pl_module.denoiser(x, t).logvar, pl_module)

    def compute_metrics(self, trainer: Trainer, module: AsyncDiffusion) -> dict[str, float]:
        """Return the ratio and the correlation over the patches of all images."""
        rows = self.evaluate_images(trainer, module, partial(_patch_errors, module))
        t, predicted, actual = rows.unbind(1)
        result = reliability(t.flatten(), predicted.flatten(), actual.flatten(), self.bins, self.groups)
        self._plot(trainer, result)
        by_level = {
            f"calibration_by_level/{kind}/{edges}": value
            for kind, values in (("predicted", result.predicted), ("actual", result.actual))
            for edges, value in zip(level_bins(self.bins), values.tolist(), strict=True)
        }
        self.details = self.tagged({tag: value for tag, value in by_level.items() if not math.isnan(value)})
        return self.tagged({"calibration/ratio": result.ratio, "calibration/correlation": result.correlation})

    def _plot(self, trainer: Trainer, result: Reliability) -> None:
        """Write the figure to RUN/images/calibration.png and to TensorBoard."""
        if not trainer.is_global_zero:
            return
        from asyncdiff.evaluation.figures.calibration_figure import calibration_figure  # slow import: matplotlib

        figure = calibration_figure(
            result.predicted,
            result.actual,
            result.grouped_predicted,
            result.grouped_actual,
            note=f"actual / predicted {result.ratio:.3f}, rank correlation {result.correlation:.2f}",
        )
        log_figure(trainer, self.figure_name("calibration"), figure)


def reliability(
    t: Float[Tensor, " n"], predicted: Float[Tensor, " n"], actual: Float[Tensor, " n"], bins: int, groups: int
) -> Reliability:
    """Compare the predicted and actual errors of patches with levels `t`; patches without noise are ignored."""
    noisy = t > 0
    t, predicted, actual = t[noisy].double(), predicted[noisy].double(), actual[noisy].double()
    index = (t * bins).long().clamp(max=bins - 1)
    means, grouped, correlations = [], [], []
    for k in range(bins):
        in_bin = index == k
        order = predicted[in_bin].argsort()
        pair = torch.stack([predicted[in_bin], actual[in_bin]])[:, order]  # (2, patches), sorted by prediction
        means.append(pair.mean(1))
        grouped.append(torch.stack([part.mean(1) for part in pair.tensor_split(groups, dim=1)], dim=1))
        if len(order) > 1:
            correlations.append(rank_correlation(pair[0], pair[1]))
    by_bin, by_group = torch.stack(means, dim=1), torch.stack(grouped, dim=1)
    correlation = math.fsum(correlations) / len(correlations) if correlations else math.nan
    ratio = float(actual.mean() / predicted.mean())
    return Reliability(ratio, correlation, by_bin[0], by_bin[1], by_group[0], by_group[1])


def rank_correlation(a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> float:
    """Return Spearman's rank correlation, with mean ranks for ties; 0 if all values of `a` or of `b` are equal."""
    return float(torch.corrcoef(torch.stack([_ranks(a), _ranks(b)]))[0, 1].nan_to_num(0))


def _ranks(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    _, index, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[index]


def _patch_errors(
    module: AsyncDiffusion, x: Float[Tensor, "b c h w"], label: Tensor | None, positions: list[int]
) -> Float[Tensor, "b 3 patches"]:
    """Return the level and the predicted and actual mean squared error of every patch, with one level map per image."""
    denoiser, process = module.denoiser, module.process
    grid = denoiser.grid((x.shape[2], x.shape[3]))
    generators = per_image(counter_key(position, STREAM) for position in positions)
    eps = normal(x.shape, generator=generators, device=x.device)
    t = AlongPath(AsyncPatch())(len(x), grid, generator=generators, device=x.device).t
    prediction = denoiser(process.noised(x, eps, t), t, label)
    predicted = _require_logvar(prediction.logvar, module).exp()
    actual = mean_per_patch((process.velocity(x, eps, t) - prediction.v).square(), grid)
    return torch.stack([value.flatten(1) for value in (t, predicted, actual)], dim=1)


def _require_logvar(logvar: Tensor | None, module: AsyncDiffusion) -> Tensor:
    """Return the predicted log variance; raise ValueError if the network has no uncertainty head."""
    if logvar is None:
        raise ValueError(
            f"Calibration needs a network with an uncertainty head, but {type(module.network).__name__} has none: "
            "set network.init_args.uncertainty: true, or remove the callback"
        )
    return logvar
