"""Find the checkpoint of a run, and tell checkpoints from exports. Imports no torch, so that commands refuse fast."""

from pathlib import Path

EXPORTED_WEIGHTS = "model.safetensors"


def is_export(path: str | Path) -> bool:
    """Return whether a path is the folder of an export, that is, contains model.safetensors."""
    return (Path(path) / EXPORTED_WEIGHTS).is_file()


def weight_file(path: str | Path) -> Path:
    """Return the path of the file with the weights: model.safetensors in an export, or the checkpoint itself."""
    return Path(path) / EXPORTED_WEIGHTS if is_export(path) else Path(path)


def locate_checkpoint(path: str | Path, *, name: str = "path", otherwise: str = "choose another checkpoint") -> Path:
    """Return the checkpoint that a path stands for.

    Args:
        path: run directory of train.py, which stands for its checkpoints/last.ckpt; .ckpt file; folder of an export.
        name: name of the path in error messages.
        otherwise: remedy if the folder contains no checkpoint, nor do the folders in it.

    Returns:
        Path of the .ckpt file, or of the export.

    Raises:
        FileNotFoundError: there is no such file or folder, or the folder contains no checkpoint.
    """
    path = Path(path)
    if path.is_file() or is_export(path) or (path / ".metadata").is_file():  # a folder of shards, refused when read
        return path
    if not path.exists():
        raise FileNotFoundError(
            f"{name} must be a run directory of train.py, a .ckpt file or an export, got {path}, which does not exist: "
            "check the path"
        )
    if not (last := path / "checkpoints" / "last.ckpt").exists():
        below = sorted(str(file.parent.parent) for file in path.glob("*/checkpoints/last.ckpt"))
        remedy = f"use {' or '.join(below[:4])}" if below else otherwise
        raise FileNotFoundError(f"{name} must contain checkpoints/last.ckpt, got {path} without it: {remedy}")
    return last
