"""Checkpoints: read without running anything that is in them, checked to be whole, written as a whole, found again."""

from asyncdiff.checkpoints.reading import damage, read_checkpoint, read_safely

__all__ = ["damage", "read_checkpoint", "read_safely"]
