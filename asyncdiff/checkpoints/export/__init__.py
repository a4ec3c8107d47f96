"""Models to be shared: a folder of weights, a readable description and a model card, written and read."""

from asyncdiff.checkpoints.export.load import is_export, read_export, weight_file

__all__ = ["is_export", "read_export", "weight_file"]
