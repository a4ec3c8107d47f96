"""Find and read checkpoints, check them for damage and write them atomically; reading never runs code in them.

`object_config` describes objects by class_path and init_args; `old_names` updates class paths of earlier versions.
"""

from asyncdiff.checkpoints.load import explain_load_error, find_damage, read_checkpoint, read_safely
from asyncdiff.checkpoints.select_weights import choose_weights

__all__ = ["choose_weights", "explain_load_error", "find_damage", "read_checkpoint", "read_safely"]
