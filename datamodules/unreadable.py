"""What a run tells of the images that it could not read."""

from collections.abc import Mapping
from pathlib import Path

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only

from datamodules.base import ImageDataset, Split

FILE = "unreadable.txt"


def report_unreadable(splits: Mapping[Split, ImageDataset], folder: Path) -> None:
    """Tell how many images of each split could not be read on any process, and list them in `folder`/unreadable.txt.

    All processes have to call this; nothing is told and written where all could be read.
    """
    lines = []
    told: set[int] = set()  # val and test may be one object
    for name, data in splits.items():
        if id(data) in told or not (found := _everywhere(data)):
            continue
        told.add(id(data))
        lines += [f"{name}\t{data.name(index)}" for index in found]  # type: ignore[attr-defined]
        share = f"{len(found)} of {len(data)} {name} images"
        rank_zero_info(f"{share} could not be read and were left out: {folder / FILE}")
    if lines:
        _write(folder / FILE, lines)


def _everywhere(data: ImageDataset) -> list[int]:
    """Indices of the images that any process found to be unreadable."""
    flags = getattr(data, "unreadable", None)
    own = [] if flags is None else flags.nonzero().flatten().tolist()
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return own
    parts: list[list[int]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(parts, own)
    return sorted({index for part in parts for index in part})


@rank_zero_only
def _write(file: Path, lines: list[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    # Names of files need not be valid text.
    file.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogateescape")
