"""How good the samples are: distances between sets of images in a space of features."""

from asyncdiff.evaluation.features import Features, TrainedClassifier, as_features
from asyncdiff.evaluation.frechet import FrechetDistance
from asyncdiff.evaluation.inception import InceptionFeatures
from asyncdiff.evaluation.timm_features import TimmFeatures

__all__ = ["Features", "FrechetDistance", "InceptionFeatures", "TimmFeatures", "TrainedClassifier", "as_features"]
