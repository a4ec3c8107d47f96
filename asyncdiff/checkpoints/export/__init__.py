"""Write and read exports: shareable folders with weights, a readable configuration and a model card."""

from typing import TYPE_CHECKING, Any

from asyncdiff.checkpoints.locate import is_export, weight_file

if TYPE_CHECKING:
    from asyncdiff.checkpoints.export.load import read_export

__all__ = ["is_export", "read_export", "weight_file"]


def __getattr__(name: str) -> Any:
    if name != "read_export":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from asyncdiff.checkpoints.export.load import read_export  # on first use, because it imports PyTorch

    return read_export
