"""Optimize with AdamW, warm-up and gradient clipping, skipping steps with non-finite gradients."""

from asyncdiff.training.optimization.optimizer_mixin import OptimizerMixin

__all__ = ["OptimizerMixin"]
