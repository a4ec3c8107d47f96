"""Reading checkpoints without running anything that is in them."""

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch


def read_checkpoint(path: str | Path, map_location: torch.device | str = "cpu") -> dict[str, Any]:
    """The contents of a checkpoint of ours, read without running any code in it."""
    if (Path(path) / ".metadata").is_file():
        raise ValueError(
            f"checkpoint_path must be one file, got {path}, a folder of shards: train with --trainer.strategy "
            f"fully_shard, or join them by python -m lightning.pytorch.utilities.consolidate_checkpoint {path}"
        )
    if not Path(path).is_file():
        raise FileNotFoundError(f"checkpoint_path must be a file, got {path}: a run keeps its own in RUN/checkpoints/")
    checkpoint = read_safely(path, map_location)
    if not isinstance(checkpoint, dict) or "recipe" not in checkpoint:
        raise ValueError(f"{path} is no checkpoint of AsyncDiffusion: it does not say how to rebuild its model")
    return checkpoint


def read_safely(path: str | Path, map_location: torch.device | str = "cpu") -> Any:
    """What torch.save wrote, as tensors and plain containers; ValueError for all else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle's versions, for files that are no pickle
            return torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # files of other things end in any of them
        raise ValueError(f"{path} is no checkpoint that can be read safely: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What is wrong in a few words: PyTorch's own go on to recommend reading the file unsafely."""
    if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it wants to call {found[1]}"
    told = "" if isinstance(error, pickle.UnpicklingError) else str(error).split("\n")[0]
    return told or "it is damaged or of another kind"
