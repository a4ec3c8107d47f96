"""Train variants of an experiment with several seeds, and compare them."""

from asyncdiff.ablation.config import Ablation, Metric, Trial

__all__ = ["Ablation", "Metric", "Trial"]
