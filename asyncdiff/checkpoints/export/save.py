"""Writing an export: a folder that is there as a whole, or as it was before."""

import hashlib
import os
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from asyncdiff.checkpoints.atomic_files import replace
from asyncdiff.checkpoints.export.load import CARD, CONFIG, FILES, FORMAT, WEIGHTS, is_export, tensors_sha256
from asyncdiff.checkpoints.export.yaml_tuples import places


def check_place(folder: Path, *, overwrite: bool) -> None:
    """Raise ValueError unless an export may be written there: nothing is there, or only an earlier one to overwrite."""
    if not folder.exists():
        return
    if not is_export(folder):
        raise ValueError(f"--output must be a new folder or an earlier export, got {folder}: name another")
    if not overwrite:
        raise ValueError(f"--output must be a new folder, got {folder}, an export: add --overwrite, or name another")
    if others := sorted(path.name for path in folder.iterdir() if path.name not in FILES):
        raise ValueError(
            f"--overwrite must not lose other files, got {others[0]} in {folder}: move it, or name another folder"
        )


def write_export(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any], card: str) -> None:
    """Write weights, configuration and model card into `folder`, in place of an earlier export there.

    Everything is written beside it first and renamed when it is complete and on the disk.

    Args:
        folder: as `check_place` allows it.
        tensors: named weights, written bit for bit.
        config: plain containers; the format, where tuples are in the recipe, and the weights' SHA-256 are added.
        card: Markdown, the front matter included.

    Raises:
        OSError: it cannot be written; what was there is as it was.
    """
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    tuples = list(places(config["recipe"]))
    whole = {"format": FORMAT, **config, "tuples": tuples, "weights_sha256": tensors_sha256(held)}
    content = yaml.safe_dump(whole, sort_keys=False, allow_unicode=True, width=120).encode()
    told = {"format": "pt", "asyncdiff_format": str(FORMAT), "config_sha256": hashlib.sha256(content).hexdigest()}
    new = _beside(folder, "new")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        _write_tensors(new / WEIGHTS, held, told)
        replace(new / CONFIG, [content])
        replace(new / CARD, [card.encode()])
        _put(new, folder)
    except OSError as error:
        raise OSError(f"cannot write {folder}: {error}; what was there is as it was") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _write_tensors(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    separate = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():  # the format has no tensors that share memory
        separate[name] = tensor.clone() if tensor.untyped_storage().data_ptr() in seen else tensor
        seen.add(tensor.untyped_storage().data_ptr())
    try:
        save_file(separate, str(file), metadata=metadata)
    except SafetensorError as error:  # the library's word for a disk that is full
        raise OSError(str(error).split("\n")[0]) from error
    file.chmod(file.parent.stat().st_mode & 0o666)  # the library lets nobody else read it
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def _put(new: Path, folder: Path) -> None:
    """Rename a finished folder into its place; an earlier one goes when the new one is there."""
    if not folder.exists():
        new.rename(folder)
        return
    old = _beside(folder, "old")
    shutil.rmtree(old, ignore_errors=True)
    folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _beside(folder: Path, what: str) -> Path:
    """A hidden name in the same file system, of this process alone."""
    return folder.with_name(f".{folder.name}.{what}.{socket.gethostname()}.{os.getpid()}.tmp")
