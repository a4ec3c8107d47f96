"""The LightningModule and what training needs: optimization, FSDP2, warm starts and compatibility checks."""

from asyncdiff.training.fsdp2 import FullyShard
from asyncdiff.training.module import AsyncDiffusion

__all__ = ["AsyncDiffusion", "FullyShard"]
