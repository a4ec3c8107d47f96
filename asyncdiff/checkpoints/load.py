"""Read checkpoints without running any code in them."""

import io
import pickle
import re
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from asyncdiff.checkpoints.export.load import read_export
from asyncdiff.checkpoints.locate import is_export
from asyncdiff.checkpoints.object_config import is_object_config
from asyncdiff.checkpoints.old_names import update_checkpoint
from asyncdiff.regular_files import open_regular


def read_checkpoint(path: str | Path, map_location: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint of an AsyncDiffusion model, or an export, without running any code in it."""
    if is_export(path):
        return read_export(path, map_location)
    if (Path(path) / ".metadata").is_file():
        raise ValueError(
            f"checkpoint_path {path} is a folder of shards, not a single file: convert it with python -m "
            f"lightning.pytorch.utilities.consolidate_checkpoint {path}, or train with --trainer.strategy fully_shard"
        )
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"checkpoint_path {path} is not a file: check the path; a run saves its checkpoints in RUN/checkpoints/"
        )
    checkpoint = read_safely(path, map_location)
    if not isinstance(checkpoint, dict) or not (
        "state_dict" in checkpoint and is_object_config(checkpoint.get("recipe"))
    ):
        raise ValueError(
            f"{path} is not a checkpoint of AsyncDiffusion, it has no state_dict or no description of the model: "
            "choose a checkpoint written by train.py"
        )
    check_entries(checkpoint, path)
    return update_checkpoint(checkpoint)


def check_entries(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Raise ValueError unless the entries that a checkpoint has are of the types that train.py writes."""
    averages = checkpoint.get("ema", {})
    entries = list(averages.values()) if isinstance(averages, Mapping) else [None]
    expected = {
        "state_dict": _holds_tensors(checkpoint["state_dict"]),
        "ema": all(isinstance(entry, Mapping) and _holds_tensors(entry.get("weights")) for entry in entries),
        "global_step": isinstance(checkpoint.get("global_step", 0), int),
        "pytorch-lightning_version": isinstance(checkpoint.get("pytorch-lightning_version", ""), str),
        "precision": isinstance(checkpoint.get("precision", ""), str),
    }
    if wrong := [name for name, valid in expected.items() if not valid]:
        raise ValueError(
            f"{path} is not a checkpoint of AsyncDiffusion, its entry {wrong[0]} is of another form: choose a "
            "checkpoint written by train.py"
        )


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(tensor, Tensor) for tensor in value.values())


def read_safely(path: str | Path, map_location: Any = "cpu", *, checked: bool = False, mapped: bool = False) -> Any:
    """Read a file written by torch.save, refusing anything but tensors and plain Python containers.

    Args:
        path: file to read.
        map_location: device to load the tensors to, or a function as for torch.load.
        checked: skip `find_damage`, which reads the entire file, because the caller has already called it.
        mapped: memory-map the tensors instead of reading them.

    Returns:
        The contents of the file.

    Raises:
        ValueError: the file is damaged or contains anything else.
    """
    if not checked and (damage := find_damage(path)):
        raise ValueError(f"{path} cannot be read safely as a checkpoint: {damage}; use a backup or another checkpoint")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle protocol of files that are not pickles
            return torch.load(path, map_location=map_location, weights_only=True, mmap=mapped)  # noqa: TID251
    except Exception as error:  # files of other formats may raise any type
        raise ValueError(f"{path} cannot be read safely as a checkpoint: {explain_load_error(error)}") from error


def find_damage(path: str | Path) -> str | None:
    """Check a file written by torch.save against its checksums, which PyTorch itself ignores.

    Files that are not zip archives (PyTorch before 1.6) and files saved without checksums count as undamaged.

    Args:
        path: file to check.

    Returns:
        A description of the damage, or None for an undamaged file.
    """
    try:
        stream = open_regular(path)
    except ValueError as error:  # a named pipe, for example
        return str(error)
    with stream:
        return find_damage_in(stream)


def find_damage_in(file: BinaryIO | io.BytesIO) -> str | None:
    """Return what `find_damage` returns, for an open file."""
    try:
        is_archive = zipfile.is_zipfile(file)
    except zipfile.BadZipFile as error:  # raised if the directory of the archive is damaged in some ways
        return f"it is damaged ({error})"
    size = file.seek(0, 2)
    if not is_archive:
        file.seek(0)
        magic = file.read(4)
        if not magic:
            return "it is empty"
        return "it is truncated or overwritten" if magic == b"PK\x03\x04" or not any(magic) else None
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            # PyTorch stores records as they are, and reads others, too: a few kilobytes may unpack to terabytes.
            if any(entry.compress_type for entry in entries) or sum(entry.file_size for entry in entries) > size:
                return "its records are compressed or larger than the file"
            # PyTorch writes zeros when it saves without checksums.
            record = archive.testzip() if any(entry.CRC for entry in entries) else None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError, ValueError) as error:
        return f"it is damaged ({error})"
    return f"its record {record} is damaged" if record else None


def explain_load_error(error: Exception) -> str:
    """Summarize why torch.load refused a file; PyTorch's own message recommends loading it unsafely."""
    if match := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it would call {match[1]}"
    message = "" if isinstance(error, pickle.UnpicklingError) else str(error).split("\n")[0]
    return message or "it is damaged or in another format"
