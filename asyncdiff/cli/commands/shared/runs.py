"""Find the checkpoint that a command line names, and the directory of its run."""

from pathlib import Path

from asyncdiff.checkpoints.locate import is_export, locate_checkpoint


def find_checkpoint(run: Path, ckpt_path: Path | None) -> Path:
    """Find the checkpoint named on the command line.

    Args:
        run: value of RUN: run directory, checkpoint file or exported folder.
        ckpt_path: value of --ckpt_path, which may be another run or an export, too; None for RUN/checkpoints/last.ckpt.

    Returns:
        Path of the checkpoint file or of the export.

    Raises:
        FileNotFoundError: one of them does not exist, or the run has no such checkpoint.
        ValueError: a checkpoint is named twice.
    """
    if ckpt_path is None:
        return locate_checkpoint(run, name="RUN", otherwise="choose another checkpoint with --ckpt_path FILE")
    if run.is_file() or is_export(run):
        raise ValueError(f"--ckpt_path is {ckpt_path}, but RUN is a checkpoint itself: drop --ckpt_path")
    if not run.exists():
        raise FileNotFoundError(f"RUN must exist, got {run}, which does not: check the path")
    return locate_checkpoint(ckpt_path, name="--ckpt_path")


def run_directory_of(checkpoint: Path) -> Path:
    """Return the run directory of a checkpoint: the parent of `checkpoints`, else its folder; an export is its own."""
    if is_export(checkpoint):
        return checkpoint
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
