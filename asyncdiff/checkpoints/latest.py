"""Find the checkpoint that a run resumes from."""

import warnings
import zipfile
from pathlib import Path

from asyncdiff.checkpoints.load import find_damage


def list_checkpoints(run: Path) -> list[Path]:
    """List the checkpoints of a run, newest first; last.ckpt comes before others with the same modification time."""
    files = [*(run / "checkpoints").glob("*.ckpt"), *run.glob("hpc_ckpt_*.ckpt")]
    files = [file for file in files if file.is_file()]  # links may be dangling
    return sorted(files, key=lambda file: (file.stat().st_mtime_ns, file.name == "last.ckpt"), reverse=True)


def newest_intact_checkpoint(run: Path) -> Path | None:
    """Return the newest intact checkpoint of a run, and warn about newer ones that are damaged.

    Args:
        run: directory of the run.

    Returns:
        Path of the checkpoint, or None if the run has no checkpoints.

    Raises:
        ValueError: all checkpoints are damaged; starting from scratch would hide that.
    """
    skipped: list[str] = []
    seen = set()
    for file in list_checkpoints(run):
        if (real := file.resolve()) in seen:  # last.ckpt may be a link to another checkpoint
            continue
        seen.add(real)
        damage = find_damage(file) or (None if zipfile.is_zipfile(file) else "it is not a zip archive")
        if damage is None:
            if skipped:
                warnings.warn(f"{'; '.join(skipped)}: the run resumes from {file}", stacklevel=2)
            return file
        skipped.append(f"{file} is skipped: {damage}")
    if skipped:
        raise ValueError(
            f"{run} has no intact checkpoint, {'; '.join(skipped)}: restore one from a backup, or start the run in "
            "another directory"
        )
    return None
