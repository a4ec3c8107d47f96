"""Write shards of cached latents, byte for byte the same every time.

The header is written here because safetensors' own leaves the order of the metadata to chance; safetensors reads it all
the same.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from asyncdiff.checkpoints.atomic_files import replace
from datamodules.storage.latent_shards import LENGTH, Layout, written

ALIGNMENT = 8  # of the tensors: that of int64


def header_bytes(layout: Layout, metadata: Mapping[str, str]) -> bytes:
    """The length and the header, padded so that the tensors are aligned."""
    text = written({"__metadata__": dict(metadata), **layout.tensors}).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(LENGTH, "little") + text


def write_shard(file: Path, layout: Layout, arrays: Mapping[str, npt.NDArray[Any]], about: Mapping[str, str]) -> None:
    """Write a shard as a whole; OSError of one line where it cannot be.

    Args:
        file: what it is to be called.
        layout: of the arrays.
        arrays: by the names of `Layout.stored`.
        about: metadata, to which the SHA-256 of the tensors is added as "sha256".
    """
    ordered = []
    for name, (dtype, shape) in layout.stored.items():
        array = np.ascontiguousarray(arrays[name], dtype)
        assert array.shape == shape, (name, array.shape, shape)
        ordered.append(array.reshape(-1).view(np.uint8).data)
    digest = hashlib.sha256()
    for part in ordered:
        digest.update(part)
    replace(file, [header_bytes(layout, {**about, "sha256": digest.hexdigest()}), *ordered])
