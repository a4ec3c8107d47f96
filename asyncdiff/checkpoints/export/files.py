"""Files of an export, and whether a folder may become one. Imports no PyTorch, so that commands refuse fast."""

from pathlib import Path

from asyncdiff.checkpoints.locate import EXPORTED_WEIGHTS, is_export

WEIGHTS, CONFIG, CARD = EXPORTED_WEIGHTS, "config.yaml", "README.md"
FILES = (WEIGHTS, CONFIG, CARD)


def check_output_folder(folder: Path, *, overwrite: bool) -> None:
    """Raise ValueError unless `folder` does not exist or is an earlier export that may be overwritten."""
    if not folder.exists():
        return
    if not is_export(folder):
        raise ValueError(f"--output {folder} exists and is not an export: choose a new folder")
    if not overwrite:
        raise ValueError(f"--output {folder} is an earlier export: add --overwrite, or choose a new folder")
    if extra_files := sorted(path.name for path in folder.iterdir() if path.name not in FILES):
        raise ValueError(
            f"--overwrite would delete {extra_files[0]} in {folder}, which is not part of an export: move it, or "
            "choose a new folder"
        )
