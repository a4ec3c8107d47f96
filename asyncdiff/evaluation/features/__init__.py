"""Feature extractors for metrics that compare sets of images."""

from asyncdiff.evaluation.features.base import Features, TrainedClassifier, as_features
from asyncdiff.evaluation.features.inception import InceptionFeatures
from asyncdiff.evaluation.features.timm import TimmFeatures

__all__ = ["Features", "InceptionFeatures", "TimmFeatures", "TrainedClassifier", "as_features"]
