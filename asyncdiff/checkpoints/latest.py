"""Find the checkpoint that a run resumes from."""

import warnings
import zipfile
from pathlib import Path

from asyncdiff.checkpoints.load import find_damage


def list_checkpoints(run: Path) -> list[Path]:
    """List the checkpoints of a run, newest first; last.ckpt comes before others of the same age."""
    files = [*(run / "checkpoints").glob("*.ckpt"), *run.glob("hpc_ckpt_*.ckpt")]
    files = [file for file in files if file.is_file()]  # a link may be dangling
    return sorted(files, key=lambda file: (file.stat().st_mtime_ns, file.name == "last.ckpt"), reverse=True)


def newest_intact(run: Path) -> Path | None:
    """Return the newest intact checkpoint of a run, with a warning about newer, damaged ones.

    Args:
        run: directory of the run.

    Returns:
        The file, or None if the run has no checkpoints.

    Raises:
        ValueError: all checkpoints are damaged; starting from scratch would hide that.
    """
    skipped: list[str] = []
    seen = set()
    for file in list_checkpoints(run):
        if (real := file.resolve()) in seen:  # last.ckpt may be a link to the newest
            continue
        seen.add(real)
        damage = find_damage(file) or (None if zipfile.is_zipfile(file) else "it is not a checkpoint")
        if damage is None:
            if skipped:
                warnings.warn(f"{'; '.join(skipped)}: the run resumes from {file}", stacklevel=2)
            return file
        skipped.append(f"{file} is skipped: {damage}")
    if skipped:
        raise ValueError(
            f"ckpt_path must be an intact checkpoint, got none: {'; '.join(skipped)}: restore one, or start "
            "in another directory"
        )
    return None
