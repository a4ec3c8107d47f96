"""Ablations: experiments that differ in a few settings, trained with several seeds and compared."""

from asyncdiff.ablation.config import Ablation, Metric, Trial

__all__ = ["Ablation", "Metric", "Trial"]
