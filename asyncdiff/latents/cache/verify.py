"""Compare every byte of a cache with its checksums."""

from pathlib import Path
from typing import Any

import numpy as np

from datamodules.storage.latent_shards import (
    REMEDY,
    DamagedError,
    Header,
    Layout,
    check_sha256,
    map_shard,
    open_shards,
    read_manifest,
)

ROWS = 1024  # images checked together


def verify(root: Path) -> dict[str, Any]:
    """Check an entire cache.

    Args:
        root: folder of the cache.

    Returns:
        The manifest.

    Raises:
        DamagedError: a file is damaged; the one-line message names the first such file and the remedy.
        FileNotFoundError: a file is missing; the one-line message names it.
    """
    manifest = read_manifest(root)
    for split in manifest["splits"].values():
        for file, layout, header in open_shards(root, split):
            check_sha256(file, header)
            check_values(file, layout, header, split["classes"])
    return manifest


def check_values(file: Path, layout: Layout, header: Header, classes: int) -> None:
    """Raise DamagedError unless latents are finite and labels are classes."""
    latents, labels = map_shard(file, layout, header)
    if not all(np.isfinite(latents[:, i : i + ROWS]).all() for i in range(0, layout.count, ROWS)):
        raise DamagedError(f"{file} has latents that are not finite: {REMEDY}")
    if not ((labels >= 0) & (labels < max(1, classes))).all():
        raise DamagedError(f"{file} has labels outside its {classes} classes: {REMEDY}")
