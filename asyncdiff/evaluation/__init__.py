"""How good the samples are: distances between sets of images in a space of features."""

from asyncdiff.evaluation.features import Features, InceptionFeatures, TrainedClassifier, as_features
from asyncdiff.evaluation.frechet import FrechetDistance

__all__ = ["Features", "FrechetDistance", "InceptionFeatures", "TrainedClassifier", "as_features"]
