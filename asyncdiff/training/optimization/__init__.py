"""Optimization: AdamW with warm-up and gradient clipping; steps with non-finite gradients are skipped."""

from asyncdiff.training.optimization.optimizer_mixin import OptimizerMixin

__all__ = ["OptimizerMixin"]
