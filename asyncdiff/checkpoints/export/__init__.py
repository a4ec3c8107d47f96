"""Write and read exports: folders with weights, a readable configuration and a model card, made for sharing."""

from asyncdiff.checkpoints.export.load import is_export, read_export, weight_file

__all__ = ["is_export", "read_export", "weight_file"]
