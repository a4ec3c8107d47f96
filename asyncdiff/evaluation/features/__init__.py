"""Feature extractors for distances between image sets."""

from asyncdiff.evaluation.features.base import Features, TrainedClassifier, as_features
from asyncdiff.evaluation.features.inception import InceptionFeatures
from asyncdiff.evaluation.features.timm import TimmFeatures

__all__ = ["Features", "InceptionFeatures", "TimmFeatures", "TrainedClassifier", "as_features"]
