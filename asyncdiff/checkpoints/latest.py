"""Find the checkpoint that a run resumes from: the one with the highest step, whatever the files' times."""

import warnings
import zipfile
from pathlib import Path

from asyncdiff.checkpoints.load import find_damage, read_safely
from datamodules.hidden_names import is_hidden


def list_checkpoints(run: Path) -> list[Path]:
    """List the checkpoints of a run, highest recorded step first and last.ckpt first of equals; without a step last."""
    # Not by modification time, which copying a run changes, and clocks that are set back.
    return [file for _, file in _checkpoints_by_step(run)]


def _checkpoints_by_step(run: Path) -> list[tuple[int, Path]]:
    found = [*(run / "checkpoints").glob("*.ckpt"), *run.glob("hpc_ckpt_*.ckpt")]
    files = [file for file in found if file.is_file() and not is_hidden(file.name)]  # links may be dangling
    steps = [(recorded_step(file), file) for file in files]
    return sorted(steps, key=lambda item: (item[0], item[1].name == "last.ckpt", item[1].name), reverse=True)


def recorded_step(file: Path) -> int:
    """Return the step recorded in a checkpoint, without reading its tensors; -1 if that is damaged or missing."""
    try:
        with zipfile.ZipFile(file) as archive:
            (entry,) = [entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl")]
            if entry.CRC:  # PyTorch writes zero when it saves without checksums
                archive.read(entry)  # compares it; a damaged step could hide that the file is the newest
        step = read_safely(file, checked=True, mapped=True)["global_step"]
    except Exception:  # damaged files and files of other formats may raise any type
        return -1
    return step if type(step) is int and step >= 0 else -1


def newest_intact_checkpoint(run: Path) -> Path | None:
    """Return the intact checkpoint with the highest step, and warn about damaged ones that may have a higher step.

    Args:
        run: directory of the run.

    Returns:
        Path of the checkpoint, or None if the run has no checkpoints.

    Raises:
        ValueError: all checkpoints are damaged; starting from scratch would hide that.
    """
    chosen: Path | None = None
    skipped: list[str] = []
    seen = set()
    for step, file in _checkpoints_by_step(run):
        if (real := file.resolve()) in seen or (chosen and step >= 0):  # last.ckpt may be a link to another checkpoint
            continue
        seen.add(real)
        damage = find_damage(file) or (None if zipfile.is_zipfile(file) else "it is not a zip archive")
        if damage is None and step >= 0:
            chosen = file
        else:
            skipped.append(f"{file} is skipped: {damage or 'it records no step'}")
    if skipped and chosen is None:
        raise ValueError(
            f"{run} has no intact checkpoint, {'; '.join(skipped)}: restore one from a backup, or start the run in "
            "another directory"
        )
    if skipped:
        warnings.warn(f"{'; '.join(skipped)}: the run resumes from {chosen}", stacklevel=2)
    return chosen
