"""Compare every byte of a cache with its checksums."""

import mmap
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.storage.latent_shards import (
    REMEDY,
    DamagedError,
    Header,
    Layout,
    check_sha256,
    latents_and_labels,
    open_shards,
    read_manifest,
)

ROWS = 1024  # images checked at a time


def verify(root: Path) -> dict[str, Any]:
    """Check a whole cache.

    Args:
        root: folder of the cache.

    Returns:
        The manifest.

    Raises:
        DamagedError: one line that names the first damaged file and the remedy.
        FileNotFoundError: one line that names a missing file.
    """
    manifest = read_manifest(root)
    for split in manifest["splits"].values():
        for file, layout, header in open_shards(root, split):
            check_sha256(file, header)
            check_values(file, layout, header, split["classes"])
    return manifest


def check_values(file: Path, layout: Layout, header: Header, classes: int) -> None:
    """Raise DamagedError unless latents are finite and labels are classes."""
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as pages:
        latents, labels = latents_and_labels(pages, layout, header.start)
        finite = all(np.isfinite(latents[:, i : i + ROWS]).all() for i in range(0, layout.count, ROWS))
        known = bool(((labels >= 0) & (labels < max(1, classes))).all())
        del latents, labels  # the map cannot be closed while arrays refer to it
    if not finite:
        raise DamagedError(f"{file} has latents that are not finite: {REMEDY}")
    if not known:
        raise DamagedError(f"{file} has labels beyond its {classes} classes: {REMEDY}")
