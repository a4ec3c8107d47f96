"""Which checkpoint a run continues from."""

import warnings
import zipfile
from pathlib import Path

from asyncdiff.checkpoints.load import damage


def held(run: Path) -> list[Path]:
    """The checkpoints of a run, the newest first; of equally old ones last.ckpt."""
    found = [*(run / "checkpoints").glob("*.ckpt"), *run.glob("hpc_ckpt_*.ckpt")]
    found = [file for file in found if file.is_file()]  # a link may have lost what it named
    return sorted(found, key=lambda file: (file.stat().st_mtime_ns, file.name == "last.ckpt"), reverse=True)


def newest_whole(run: Path) -> Path | None:
    """The newest checkpoint of a run that is whole, with a warning where a newer one is not; None if it has none.

    ValueError where all are damaged: starting anew would go unnoticed.
    """
    wrong: list[str] = []
    seen = set()
    for file in held(run):
        if (real := file.resolve()) in seen:  # last.ckpt may be another name of the newest
            continue
        seen.add(real)
        told = damage(file) or (None if zipfile.is_zipfile(file) else "it is of another kind")
        if told is None:
            if wrong:
                warnings.warn(f"{'; '.join(wrong)}: the run goes on from {file}", stacklevel=2)
            return file
        wrong.append(f"{file} is passed over: {told}")
    if wrong:
        raise ValueError(
            f"ckpt_path must be a whole checkpoint, got none: {'; '.join(wrong)}: restore one, or start "
            "in another directory"
        )
    return None
