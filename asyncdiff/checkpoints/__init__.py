"""Find and read checkpoints, check them for damage and write them atomically; reading never runs code in them.

`object_config` describes objects by class_path and init_args; `old_names` updates class paths of earlier versions.
Names that need PyTorch are imported on first use, so that commands refuse arguments without it.
"""

from importlib import import_module  # noqa: TID251  of the modules below
from typing import TYPE_CHECKING, Any

from asyncdiff.checkpoints.locate import locate_checkpoint

if TYPE_CHECKING:
    from asyncdiff.checkpoints.load import explain_load_error, find_damage, read_checkpoint, read_safely
    from asyncdiff.checkpoints.select_weights import check_weights, choose_weights

__all__ = [
    "check_weights",
    "choose_weights",
    "explain_load_error",
    "find_damage",
    "locate_checkpoint",
    "read_checkpoint",
    "read_safely",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{'select_weights' if name.endswith('_weights') else 'load'}"), name)
