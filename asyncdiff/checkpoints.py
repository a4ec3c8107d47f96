"""Reading checkpoints without running anything that is in them."""

import pickle
from pathlib import Path
from typing import Any

import torch


def read_checkpoint(path: str | Path, map_location: torch.device | str = "cpu") -> dict[str, Any]:
    """The contents of a checkpoint of ours, read without running any code in it."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"checkpoint_path must be a file, got {path}: a run keeps its own in RUN/checkpoints/")
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is no checkpoint that can be read safely: {reason}") from error
    if not isinstance(checkpoint, dict) or "recipe" not in checkpoint:
        raise ValueError(f"{path} is no checkpoint of AsyncDiffusion: it does not say how to rebuild its model")
    return checkpoint
