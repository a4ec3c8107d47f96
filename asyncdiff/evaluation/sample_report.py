"""Compute metrics of generated images, and record their settings and caveats."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from asyncdiff.evaluation.feature_metrics import (
    SPLITS,
    SUBSETS,
    Estimate,
    frechet_distance,
    inception_score,
    kernel_distance,
    subset_size_for,
)
from asyncdiff.evaluation.precision_recall import density_coverage, precision_recall
from asyncdiff.evaluation.reference_statistics import Reference

FeatureArray = Float[Tensor, "n d"]
Logits = Float[Tensor, "n k"]


@dataclass
class SampleReport:
    """Metrics of one set of generated images.

    Attributes:
        metrics: values by METRIC/FEATURES, which are also the TensorBoard tags.
        deviations: standard deviations over subsets or splits by the same names, for metrics that have one.
        settings: settings by metric, to record in the protocol.
        notes: one line per caveat, such as a biased estimate.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    deviations: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def metrics_needing_image_features(metrics: Sequence[str]) -> list[str]:
    """Return the metrics that need features of individual real images, not just their mean and covariance."""
    return [name for name in metrics if name not in ("frechet", "inception_score")]


def compute_metrics(
    metrics: Sequence[str],
    name: str,
    reference: Reference,
    features: FeatureArray,
    *,
    logits: Logits | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> SampleReport:
    """Return the metrics with these names of generated images, from their features (m, d) and class scores (m, k).

    Distances are computed in float64 on `device`. `seed` draws KID's subsets and the shuffle of the Inception score.

    Raises:
        ValueError: the input of a metric is missing, or there are too few images for it.
    """
    report = SampleReport()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for metric in metrics:
            _METRICS[metric](report, name, _Inputs(reference, features, logits, seed, torch.device(device)))
    report.notes += [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
    return report


@dataclass(frozen=True)
class _Inputs:
    reference: Reference
    fake: FeatureArray
    logits: Logits | None
    seed: int
    device: torch.device

    def image_features(self, metric: str) -> tuple[Tensor, Tensor]:
        """Return the features of individual real and generated images, in float64, which Apple's GPU does not have."""
        if self.reference.features is None:
            raise ValueError(
                f"{metric} needs features of individual real images, but the reference has none: "
                f"omit {metric} from --metrics"
            )
        device = torch.device("cpu") if self.device.type == "mps" else self.device
        return self.reference.features.to(device, torch.float64), self.fake.to(device, torch.float64)


def _frechet(report: SampleReport, name: str, inputs: _Inputs) -> None:
    real = inputs.reference
    report.metrics[f"frechet/{name}"] = frechet_distance(real.gaussian, inputs.fake, real_count=real.count)


def _kid(report: SampleReport, name: str, inputs: _Inputs) -> None:
    real, fake = inputs.image_features("kid")
    size = subset_size_for(len(real), len(fake))
    estimate = kernel_distance(real, fake, subset_size=size, seed=inputs.seed)
    _add_estimate(report, f"kid/{name}", estimate)
    subsets = 1 if math.isnan(estimate.deviation) else SUBSETS
    report.settings["kid"] = {"subsets": subsets, "subset_size": size, "seed": inputs.seed}


def _inception_score(report: SampleReport, name: str, inputs: _Inputs) -> None:
    if inputs.logits is None:
        raise ValueError(
            f"inception_score needs class predictions, but {name} has none: omit inception_score from --metrics"
        )
    _add_estimate(report, f"inception_score/{name}", inception_score(inputs.logits, seed=inputs.seed))
    report.settings["inception_score"] = {"splits": SPLITS, "seed": inputs.seed}


def _manifolds(
    metric: str, compute: Callable[..., Any], k: int, report: SampleReport, name: str, inputs: _Inputs
) -> None:
    real, fake = inputs.image_features(metric)
    report.metrics |= {f"{key}/{name}": value for key, value in compute(real, fake, k=k)._asdict().items()}
    report.settings[metric] = {"k": k, "real": len(real)}


def _add_estimate(report: SampleReport, name: str, estimate: Estimate) -> None:
    report.metrics[name] = estimate.mean
    if not math.isnan(estimate.deviation):  # JSON has no NaN
        report.deviations[name] = estimate.deviation


_METRICS: Mapping[str, Callable[[SampleReport, str, _Inputs], None]] = {
    "frechet": _frechet,
    "kid": _kid,
    "inception_score": _inception_score,
    "precision_recall": partial(_manifolds, "precision_recall", precision_recall, 3),  # k as published
    "density_coverage": partial(_manifolds, "density_coverage", density_coverage, 5),
}
METRICS = tuple(_METRICS)
