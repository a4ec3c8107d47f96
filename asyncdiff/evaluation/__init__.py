"""How good the samples are: distances between sets of images in a space of features."""

from asyncdiff.evaluation.features.base import Features, TrainedClassifier, as_features
from asyncdiff.evaluation.features.inception import InceptionFeatures
from asyncdiff.evaluation.features.timm import TimmFeatures
from asyncdiff.evaluation.frechet import FrechetDistance

__all__ = ["Features", "FrechetDistance", "InceptionFeatures", "TimmFeatures", "TrainedClassifier", "as_features"]
