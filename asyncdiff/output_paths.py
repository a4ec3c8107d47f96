"""Check that a path can be written to before anything expensive is computed; nothing is created. Imports no torch."""

import errno
import os
import tempfile
from pathlib import Path

MAX_NAME, MAX_PATH = 255, 4096  # bytes that Linux and its file systems allow
RESERVED = 80  # bytes that a temporary name of the same file adds
OWN_FILES = ("config.yaml", "checkpoints", "model.safetensors")  # of a run or an export


def check_output_folder(folder: Path, name: str = "output", *, may_be_a_run: bool = False) -> None:
    """Raise ValueError unless files can be written to a folder, which need not exist.

    Args:
        folder: path of the folder.
        name: argument to name in the error.
        may_be_a_run: whether it may be the folder of a run or an export, among whose files others would be mixed.
    """
    if os.path.exists(folder) and not folder.is_dir():
        raise ValueError(f"{name} must be a folder, got the existing file {folder}: choose another path")
    if problem := _problem(folder):
        raise ValueError(f"{name} must be a folder that can be written, got {folder}: {problem}: choose another path")
    if not may_be_a_run and (own := _own_file(folder)):
        raise ValueError(
            f"{name} must not be the folder of a run or an export, got {folder}, which contains {own}: choose another "
            "folder"
        )


def check_output_file(file: Path, name: str = "output") -> None:
    """Raise ValueError unless a file can be written to a path; an existing file can be replaced.

    Args:
        file: path of the file.
        name: argument to name in the error.
    """
    if os.path.exists(file) and not file.is_file():
        kind = "the existing folder" if file.is_dir() else "the device or pipe"
        raise ValueError(f"{name} must be a file, got {kind} {file}: choose another path")
    leads_nowhere = os.path.islink(file) and not os.path.exists(file)
    if problem := "it is a link that leads nowhere" if leads_nowhere else _problem(file.parent, file.name):
        raise ValueError(f"{name} must be a file that can be written, got {file}: {problem}: choose another path")


def _problem(folder: Path, file: str = "") -> str | None:
    """Return why a folder cannot be created, or a file in it."""
    names = [file + "." * RESERVED] if file else []
    length = len(os.fsencode(folder / file)) + RESERVED
    while not os.path.lexists(folder) and folder != folder.parent:
        names.append(folder.name)
        folder = folder.parent
    if length > MAX_PATH or any(len(os.fsencode(name)) > MAX_NAME for name in names):
        return "a name in it is too long"
    if os.path.islink(folder) and not os.path.exists(folder):
        return f"{folder} is a link that leads nowhere"
    try:
        with tempfile.TemporaryFile(dir=folder):  # without a name, so that nobody sees it
            return None
    except OSError as error:
        if error.errno == errno.ENOENT:
            return f"nothing can be written in {folder}"
        return f"{folder}: {error.strerror or error}"


def _own_file(folder: Path) -> str | None:
    """Return the name of a file in a folder that belongs to a run or an export, or None."""
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    return next((name for name in names if name in OWN_FILES or name.endswith(".ckpt")), None)
