"""Checkpoints: read without running anything that is in them, checked to be whole, written as a whole, found again."""

from asyncdiff.checkpoints.load import damage, read_checkpoint, read_safely, reason
from asyncdiff.checkpoints.select_weights import choose

__all__ = ["choose", "damage", "read_checkpoint", "read_safely", "reason"]
