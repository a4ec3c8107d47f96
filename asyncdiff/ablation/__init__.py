"""Experiments that differ in a few settings, run over several seeds and compared."""

from asyncdiff.ablation.config import Ablation, Metric, Trial

__all__ = ["Ablation", "Metric", "Trial"]
