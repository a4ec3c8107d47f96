"""Report of the images that a run could not read."""

from collections.abc import Mapping
from pathlib import Path

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only

from datamodules.base import ImageDataset, Split

FILE = "unreadable.txt"


def report_unreadable(splits: Mapping[Split, ImageDataset], folder: Path) -> None:
    """Print how many images of each split some process could not read, and list them in `folder`/unreadable.txt.

    All processes must call this. Nothing is printed or written if all images were readable.
    """
    lines = []
    reported: set[int] = set()  # val and test may be the same object
    for name, data in splits.items():
        if id(data) in reported or not (unreadable := _unreadable_indices(data)):
            continue
        reported.add(id(data))
        lines += [f"{name}\t{data.name(index)}" for index in unreadable]  # type: ignore[attr-defined]
        count = f"{len(unreadable)} of {len(data)} {name} images"
        rank_zero_info(f"{count} could not be read and were left out: {folder / FILE}")
    if lines:
        _write(folder / FILE, lines)


def _unreadable_indices(data: ImageDataset) -> list[int]:
    """Return the indices of the images that any process could not read."""
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
    # File names need not be valid UTF-8.
    file.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogateescape")
