"""Read checkpoints without running any code in them."""

import pickle
import re
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from asyncdiff.checkpoints.export import is_export, read_export
from asyncdiff.checkpoints.old_names import update_checkpoint


def read_checkpoint(path: str | Path, map_location: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint of AsyncDiffusion, or an export, without running any code in it."""
    if is_export(path):
        return read_export(path, map_location)
    if (Path(path) / ".metadata").is_file():
        raise ValueError(
            f"checkpoint_path must be one file, got {path}, a folder of shards: train with --trainer.strategy "
            f"fully_shard, or consolidate it with python -m lightning.pytorch.utilities.consolidate_checkpoint {path}"
        )
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"checkpoint_path must be a file, got {path}: a run keeps its checkpoints in RUN/checkpoints/"
        )
    checkpoint = read_safely(path, map_location)
    if not isinstance(checkpoint, dict) or not {"recipe", "state_dict"} <= checkpoint.keys():
        raise ValueError(
            f"{path} is not a checkpoint of AsyncDiffusion: it does not describe the model that it belongs to"
        )
    return update_checkpoint(checkpoint)


def read_safely(path: str | Path, map_location: Any = "cpu", *, checked: bool = False, mapped: bool = False) -> Any:
    """Read a file of torch.save that holds tensors and plain containers only.

    Args:
        path: file to read.
        map_location: as in torch.load.
        checked: skip `find_damage`, which reads the whole file, because the caller has called it.
        mapped: map the tensors into memory instead of reading them.

    Returns:
        The contents.

    Raises:
        ValueError: the file is damaged or holds anything else.
    """
    if not checked and (damage := find_damage(path)):
        raise ValueError(f"{path} is not a checkpoint that can be read safely: {damage}: use another, or a backup")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols, for files that are not pickles
            return torch.load(path, map_location=map_location, weights_only=True, mmap=mapped)
    except Exception as error:  # of any type, for files of other formats
        raise ValueError(f"{path} is not a checkpoint that can be read safely: {explain_load_error(error)}") from error


def find_damage(path: str | Path) -> str | None:
    """Check a file of torch.save against its checksums, which PyTorch itself ignores.

    Files that are not zip archives, as of PyTorch before 1.6, and files saved without checksums count as undamaged.

    Args:
        path: file to check.

    Returns:
        A description of the damage, or None.
    """
    try:
        archived = zipfile.is_zipfile(path)
    except zipfile.BadZipFile as error:  # raised for some kinds of damage to the directory
        return f"it is damaged ({error})"
    if not archived:
        with Path(path).open("rb") as file:
            magic = file.read(4)
        if not magic:
            return "it is empty"
        return "it is truncated or overwritten" if magic == b"PK\x03\x04" or not any(magic) else None
    try:
        with zipfile.ZipFile(path) as archive:
            # PyTorch writes zeros when it saves without checksums.
            damaged = archive.testzip() if any(record.CRC for record in archive.infolist()) else None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError, ValueError) as error:
        return f"it is damaged ({error})"
    return f"its record {damaged} is damaged" if damaged else None


def explain_load_error(error: Exception) -> str:
    """Summarize why torch.load refused a file; PyTorch's own message recommends reading it unsafely."""
    if match := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it would call {match[1]}"
    message = "" if isinstance(error, pickle.UnpicklingError) else str(error).split("\n")[0]
    return message or "it is damaged or in another format"
