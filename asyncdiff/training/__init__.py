"""Train models: the LightningModule, optimization, FSDP2, warm start and compatibility checks."""

from asyncdiff.training.fsdp2 import FullyShard
from asyncdiff.training.lightning_module import AsyncDiffusion
from asyncdiff.training.settings import OptimizerSettings, PredictSettings

__all__ = ["AsyncDiffusion", "FullyShard", "OptimizerSettings", "PredictSettings"]
