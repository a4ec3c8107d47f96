"""Sample metrics and their feature extractors, likelihoods by path, and figures.

The names below are imported on first use, since figures need neither torchmetrics nor timm.
"""

from importlib import import_module  # noqa: TID251  of the modules below
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncdiff.evaluation.features import Features, InceptionFeatures, TimmFeatures, TrainedClassifier, as_features
    from asyncdiff.evaluation.frechet import FrechetDistance

__all__ = ["Features", "FrechetDistance", "InceptionFeatures", "TimmFeatures", "TrainedClassifier", "as_features"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{'frechet' if name == 'FrechetDistance' else 'features'}"), name)
