"""How weights are moved: AdamW, its warm-up, clipping, and steps that are skipped where gradients are not finite."""

from asyncdiff.training.optimization.optimizer_mixin import OptimizerMixin

__all__ = ["OptimizerMixin"]
