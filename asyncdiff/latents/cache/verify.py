"""Whether a cache is what was written: every byte of it."""

import mmap
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.storage.latent_shards import (
    REMEDY,
    DamagedError,
    Header,
    Layout,
    check_bytes,
    opened_shards,
    read_manifest,
    views_of,
)

ROWS = 1024  # images looked at together


def verify(root: Path) -> dict[str, Any]:
    """The manifest of a cache of which all is in order; one line with the first file that is not, and what to do."""
    manifest = read_manifest(root)
    for split in manifest["splits"].values():
        for file, layout, header in opened_shards(root, split):
            check_bytes(file, header)
            check_values(file, layout, header, split["classes"])
    return manifest


def check_values(file: Path, layout: Layout, header: Header, classes: int) -> None:
    """Raise DamagedError unless latents are finite and labels are classes."""
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as pages:
        latents, labels = views_of(pages, layout, header.start)
        finite = all(np.isfinite(latents[:, i : i + ROWS]).all() for i in range(0, layout.count, ROWS))
        known = bool(((labels >= 0) & (labels < max(1, classes))).all())
        del latents, labels  # the pages cannot be given back while arrays look at them
    if not finite:
        raise DamagedError(f"{file} has latents that are not finite: {REMEDY}")
    if not known:
        raise DamagedError(f"{file} has labels beyond its {classes} classes: {REMEDY}")
