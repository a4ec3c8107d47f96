"""Write and read exports: shareable folders with weights, a readable configuration and a model card."""

from asyncdiff.checkpoints.export.load import is_export, read_export, weight_file

__all__ = ["is_export", "read_export", "weight_file"]
