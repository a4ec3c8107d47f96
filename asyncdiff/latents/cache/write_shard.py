"""Write shards of cached latents, reproducibly to the byte.

The header is written here because safetensors does not fix the order of the metadata; safetensors can read the files.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from asyncdiff.checkpoints.atomic_files import write_atomically
from datamodules.storage.latent_shards import LENGTH, Layout, canonical_json

ALIGNMENT = 8  # bytes; that of int64


def header_bytes(layout: Layout, metadata: Mapping[str, str]) -> bytes:
    """Return a shard's length field and header, padded so that the tensors are aligned."""
    text = canonical_json({"__metadata__": dict(metadata), **layout.tensors}).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(LENGTH, "little") + text


def write_shard(file: Path, layout: Layout, arrays: Mapping[str, npt.NDArray[Any]], about: Mapping[str, str]) -> None:
    """Write the arrays of `layout.stored`, and their SHA-256 in the metadata; raise OSError if that fails."""
    ordered = []
    for name, (dtype, shape) in layout.stored.items():
        array = np.ascontiguousarray(arrays[name], dtype)
        assert array.shape == shape, (name, array.shape, shape)
        ordered.append(array.reshape(-1).view(np.uint8).data)
    digest = hashlib.sha256()
    for part in ordered:
        digest.update(part)
    write_atomically(file, [header_bytes(layout, {**about, "sha256": digest.hexdigest()}), *ordered])
