"""Reading checkpoints without running anything that is in them."""

import pickle
import re
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from asyncdiff.checkpoints.export import is_export, read_export
from asyncdiff.checkpoints.old_names import current_checkpoint


def read_checkpoint(path: str | Path, map_location: torch.device | str = "cpu") -> dict[str, Any]:
    """The contents of a checkpoint of ours, or of an export, read without running any code in it."""
    if is_export(path):
        return read_export(path, map_location)
    if (Path(path) / ".metadata").is_file():
        raise ValueError(
            f"checkpoint_path must be one file, got {path}, a folder of shards: train with --trainer.strategy "
            f"fully_shard, or join them by python -m lightning.pytorch.utilities.consolidate_checkpoint {path}"
        )
    if not Path(path).is_file():
        raise FileNotFoundError(f"checkpoint_path must be a file, got {path}: a run keeps its own in RUN/checkpoints/")
    checkpoint = read_safely(path, map_location)
    if not isinstance(checkpoint, dict) or not {"recipe", "state_dict"} <= checkpoint.keys():
        raise ValueError(f"{path} is no checkpoint of AsyncDiffusion: it does not say how to rebuild its model")
    return current_checkpoint(checkpoint)


def read_safely(path: str | Path, map_location: Any = "cpu", *, checked: bool = False, mapped: bool = False) -> Any:
    """What torch.save wrote, as tensors and plain containers; ValueError for all else, and for damaged files.

    Args:
        path: the file.
        map_location: as torch.load takes it.
        checked: the caller has asked `damage`, which reads all of the file, before.
        mapped: leave the tensors in the file until somebody looks at them.
    """
    if not checked and (told := damage(path)):
        raise ValueError(f"{path} is no checkpoint that can be read safely: {told}: take another, or a copy of it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle's versions, for files that are no pickle
            return torch.load(path, map_location=map_location, weights_only=True, mmap=mapped)
    except Exception as error:  # files of other things end in any of them
        raise ValueError(f"{path} is no checkpoint that can be read safely: {reason(error)}") from error


def damage(path: str | Path) -> str | None:
    """What is wrong with a file of torch.save's as far as its checksums tell, or None; PyTorch itself checks none.

    Files that are no zip archives, as of PyTorch before 1.6, are passed, and so are those saved without checksums.
    """
    try:
        archived = zipfile.is_zipfile(path)
    except zipfile.BadZipFile as error:  # instead of an answer, for some damage to the directory
        return f"it is damaged ({error})"
    if not archived:
        with Path(path).open("rb") as file:
            begins = file.read(4)
        if not begins:
            return "it is empty"
        return "it is cut short or overwritten" if begins == b"PK\x03\x04" or not any(begins) else None
    try:
        with zipfile.ZipFile(path) as archive:
            # Zeros all over are PyTorch's way to save without them.
            wrong = archive.testzip() if any(record.CRC for record in archive.infolist()) else None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError, ValueError) as error:
        return f"it is damaged ({error})"
    return f"its record {wrong} is damaged" if wrong else None


def reason(error: Exception) -> str:
    """Why torch.load refused a file, in a few words: PyTorch's own go on to recommend reading it unsafely."""
    if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it wants to call {found[1]}"
    told = "" if isinstance(error, pickle.UnpicklingError) else str(error).split("\n")[0]
    return told or "it is damaged or of another kind"
