"""Experiments that differ in a few settings, run over several seeds and compared."""

from asyncdiff.ablation.config import Ablation, Cell, Metric

__all__ = ["Ablation", "Cell", "Metric"]
