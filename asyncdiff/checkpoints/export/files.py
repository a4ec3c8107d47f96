"""Files of an export, and whether a folder is one or may become one."""

from pathlib import Path

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.yaml", "README.md"
FILES = (WEIGHTS, CONFIG, CARD)


def is_export(path: str | Path) -> bool:
    """Return whether a path is the folder of an export, that is, contains model.safetensors."""
    return (Path(path) / WEIGHTS).is_file()


def weight_file(path: str | Path) -> Path:
    """Return the path of the file with the weights: model.safetensors in an export, or the checkpoint itself."""
    return Path(path) / WEIGHTS if is_export(path) else Path(path)


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
