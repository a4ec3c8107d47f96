"""Find and read checkpoints, check them for damage and write them atomically; reading never runs code in them.

`object_config` describes objects by class_path and init_args; `old_names` updates class paths of earlier versions.
The names below are imported on first use, because they need PyTorch, and `old_names` does not.
"""

from importlib import import_module  # noqa: TID251  of the modules below
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncdiff.checkpoints.load import explain_load_error, find_damage, read_checkpoint, read_safely
    from asyncdiff.checkpoints.select_weights import choose_weights

__all__ = ["choose_weights", "explain_load_error", "find_damage", "read_checkpoint", "read_safely"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{'select_weights' if name == 'choose_weights' else 'load'}"), name)
