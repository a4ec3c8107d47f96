"""Several numbers of one set of generated images, with their settings and what has to be said about them."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from asyncdiff.evaluation.kid_and_is import (
    SPLITS,
    SUBSETS,
    frechet_distance,
    inception_score,
    kernel_distance,
    subset_size_for,
)
from asyncdiff.evaluation.precision_recall import density_coverage, precision_recall
from asyncdiff.evaluation.reference_statistics import Reference

METRICS = ("frechet", "kid", "inception_score", "precision_recall", "density_coverage")
PRECISION_NEIGHBOURS, DENSITY_NEIGHBOURS = 3, 5  # as published

Rows = Float[Tensor, "n d"]
Logits = Float[Tensor, "n k"]


@dataclass
class Quality:
    """What was found.

    Attributes:
        metrics: numbers by METRIC/FEATURES, as their tags in TensorBoard.
        deviations: over subsets or splits, by the same names, where there are any.
        settings: of the metrics, for the protocol.
        notes: a line about each number that is not what it seems.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    deviations: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def needs_rows(metrics: Sequence[str]) -> list[str]:
    """Those of the metrics that compare with features of single real images, which statistics alone do not have."""
    return [name for name in metrics if name not in ("frechet", "inception_score")]


def quality(
    metrics: Sequence[str],
    name: str,
    reference: Reference,
    rows: Rows,
    *,
    logits: Logits | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Quality:
    """The metrics of generated images.

    Args:
        metrics: some of `METRICS`.
        name: of the features.
        reference: the real side.
        rows: features of the generated images, (m, d).
        logits: class scores of the generated images, for the Inception score.
        seed: of KID's subsets and of the order of the Inception score.
        device: where distances between rows are computed, in float64 unless it has none.

    Raises:
        ValueError: a metric is unknown, its input is missing, or images are too few for it.
    """
    found = Quality()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for metric in metrics:
            _MEASURES[metric](found, name, _Sides(reference, rows, logits, seed, _precise(device)))
    found.notes += [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
    return found


@dataclass(frozen=True)
class _Sides:
    reference: Reference
    fake: Rows
    logits: Logits | None
    seed: int
    device: torch.device

    def both(self, metric: str) -> tuple[Tensor, Tensor]:
        """Features of single images, real and generated, in float64."""
        if self.reference.rows is None:
            raise ValueError(f"--metrics must leave {metric} out: the reference has no features of single images")
        return self.reference.rows.to(self.device, torch.float64), self.fake.to(self.device, torch.float64)


def _precise(device: torch.device | str) -> torch.device:
    # Apple's GPU has no float64.
    return torch.device("cpu" if torch.device(device).type == "mps" else device)


def _frechet(found: Quality, name: str, sides: _Sides) -> None:
    real = sides.reference
    found.metrics[f"frechet/{name}"] = frechet_distance(real.gaussian, sides.fake, real_count=real.count)


def _kid(found: Quality, name: str, sides: _Sides) -> None:
    real, fake = sides.both("kid")
    size = subset_size_for(len(real), len(fake))
    estimate = kernel_distance(real, fake, subset_size=size, seed=sides.seed)
    _put(found, f"kid/{name}", estimate)
    subsets = 1 if math.isnan(estimate.deviation) else SUBSETS
    found.settings["kid"] = {"subsets": subsets, "subset_size": size, "seed": sides.seed}


def _inception_score(found: Quality, name: str, sides: _Sides) -> None:
    if sides.logits is None:
        raise ValueError(f"--metrics must leave inception_score out for {name}, which predicts no classes")
    _put(found, f"inception_score/{name}", inception_score(sides.logits, seed=sides.seed))
    found.settings["inception_score"] = {"splits": SPLITS, "seed": sides.seed}


def _precision_recall(found: Quality, name: str, sides: _Sides) -> None:
    real, fake = sides.both("precision_recall")
    result = precision_recall(real, fake, k=PRECISION_NEIGHBOURS)
    found.metrics |= {f"{key}/{name}": value for key, value in result._asdict().items()}
    found.settings["precision_recall"] = {"k": PRECISION_NEIGHBOURS, "real": len(real)}


def _density_coverage(found: Quality, name: str, sides: _Sides) -> None:
    real, fake = sides.both("density_coverage")
    result = density_coverage(real, fake, k=DENSITY_NEIGHBOURS)
    found.metrics |= {f"{key}/{name}": value for key, value in result._asdict().items()}
    found.settings["density_coverage"] = {"k": DENSITY_NEIGHBOURS, "real": len(real)}


def _put(found: Quality, name: str, estimate: Any) -> None:
    found.metrics[name] = estimate.mean
    if not math.isnan(estimate.deviation):  # JSON has no NaN
        found.deviations[name] = estimate.deviation


_MEASURES: Mapping[str, Any] = {
    "frechet": _frechet,
    "kid": _kid,
    "inception_score": _inception_score,
    "precision_recall": _precision_recall,
    "density_coverage": _density_coverage,
}
