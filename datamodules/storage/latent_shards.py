"""Format of cached latents: shards in the safetensors format, and a manifest that describes all of them.

A shard contains `label` and `index` (int64, n), then `mean` and, unless the encoder is deterministic, `logvar` (both
n, views, c, h, w; raw, before scale and shift). `asyncdiff.latents.cache` writes them.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

VERSION = 1
MANIFEST = "manifest.json"
SUFFIX = ".safetensors"
LENGTH = 8  # bytes of the length of the header
MAX_HEADER = 10**8  # limit of safetensors
NAMES = {"float16": "F16", "float32": "F32", "int64": "I64"}  # names of data types in safetensors
REMEDY = "delete it and run the command again"

Shape = tuple[int, int, int]


class DamagedError(ValueError):
    """Error for a file that is not what was written."""


class Layout(NamedTuple):
    """Number, shape and data type of the latents in a shard.

    Attributes:
        count: number of images.
        views: views per image: 1, or 2 with the mirrored one.
        shape: shape of a latent, (c, h, w).
        dtype: "float16" or "float32".
        moments: 2 with a log-variance, 1 without.
    """

    count: int  # type: ignore[assignment]  # hides tuple.count, which is not used
    views: int
    shape: Shape
    dtype: str
    moments: int

    @property
    def stored(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Data type and shape of every tensor, in the order of the file."""
        latents = (self.dtype, (self.count, self.views, *self.shape))
        heads = {"label": ("int64", (self.count,)), "index": ("int64", (self.count,))}
        return heads | dict.fromkeys(["mean", "logvar"][: self.moments], latents)

    @property
    def tensors(self) -> dict[str, dict[str, Any]]:
        """Entries of the safetensors header."""
        entries, end = {}, 0
        for name, (dtype, shape) in self.stored.items():
            start, end = end, end + math.prod(shape) * np.dtype(dtype).itemsize
            entries[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        return entries

    @property
    def bytes(self) -> int:
        """Total size of all tensors in bytes."""
        return next(reversed(self.tensors.values()))["data_offsets"][1]


class Header(NamedTuple):
    """Header of a shard, compared with the length of the file.

    Attributes:
        file: the shard.
        metadata: string metadata of the shard.
        layout: number, shape and data type of its latents.
        start: offset at which the tensors start.
        sha256: SHA-256 of all bytes before `start`.
    """

    file: Path
    metadata: dict[str, str]
    layout: Layout
    start: int
    sha256: str


def shard_name(split: str, number: int, of: int) -> str:
    """Return the file name of shard `number` out of `of`."""
    return f"{split}-{number:05d}-of-{of:05d}{SUFFIX}"


def canonical_json(value: Any) -> str:
    """Serialize a value to JSON that is identical for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def read_header(file: Path) -> Header:
    """Read the header of a shard; raise FileNotFoundError, or DamagedError if it does not describe the file."""
    with file.open("rb") as stream:
        first, length = stream.read(LENGTH), os.fstat(stream.fileno()).st_size
        size = int.from_bytes(first, "little")
        if len(first) < LENGTH or not size <= min(MAX_HEADER, length - LENGTH):
            raise _damaged(file, "it has no header")
        text = stream.read(size)
    try:
        entries = json.loads(text)
        metadata, mean = entries.pop("__metadata__"), entries["mean"]
        count, views, channels, height, width = mean["shape"]
        dtype = {short: name for name, short in NAMES.items()}[mean["dtype"]]
        numbers_valid = all(isinstance(number, int) and number >= 0 for number in mean["shape"])
        if not numbers_valid or not all(isinstance(value, str) for value in metadata.values()):
            raise TypeError("shapes must be non-negative integers, and metadata strings")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(file, "its header cannot be read") from error
    layout = Layout(count, views, (channels, height, width), dtype, 2 if "logvar" in entries else 1)
    if entries != layout.tensors:
        raise _damaged(file, f"its tensors are not those of {count} images")
    start = LENGTH + size
    if length != start + layout.bytes:
        raise _damaged(file, f"it must have {start + layout.bytes} bytes, got {length}")
    return Header(file, metadata, layout, start, hashlib.sha256(first + text).hexdigest())


def check_sha256(header: Header) -> None:
    """Raise DamagedError unless the tensors have the SHA-256 in the header; reads the whole file."""
    with header.file.open("rb") as stream:
        stream.seek(header.start)
        if hashlib.file_digest(stream, "sha256").hexdigest() != header.metadata.get("sha256"):
            raise _damaged(header.file, "its SHA-256 is not what was written")


def _damaged(file: Path, what: str) -> DamagedError:
    return DamagedError(f"{file} is damaged, {what}: {REMEDY}")


def read_manifest(root: Path) -> dict[str, Any]:
    """Read the manifest of a cache; raise FileNotFoundError or ValueError if it is missing, damaged or outdated."""
    file = root / MANIFEST
    if not file.is_file():
        state = "with an incomplete cache" if any(root.glob(f"*{SUFFIX}")) else "without a cache"
        raise FileNotFoundError(
            f"root must be a folder that `python -m asyncdiff cache-latents` has completed, got {root} {state}: run "
            "the command (again), it resumes where it stopped"
        )
    try:
        # Scale and shift must be numbers: NaN, which JSON does not have, counts as damage.
        manifest: dict[str, Any] = json.loads(file.read_text(), parse_constant=_refuse_constant)
        version, expected = manifest["version"], manifest.pop("sha256", None)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {REMEDY}") from error
    if version != VERSION:
        raise ValueError(
            f"{file} must have version {VERSION}, got {version}: cache the latents again with this release"
        )
    if expected not in (None, manifest_sha256(manifest)):  # caches of earlier releases have no checksum
        raise _damaged(file, "its SHA-256 is not what was written")
    return manifest


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def manifest_sha256(manifest: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a manifest that does not contain its own."""
    return hashlib.sha256(canonical_json(manifest).encode()).hexdigest()


def layout_from_manifest(split: Mapping[str, Any], count: int) -> Layout:
    """Return the layout of a shard of `count` images, from the entry of its split in the manifest."""
    channels, height, width = split["shape"]
    return Layout(count, split["views"], (channels, height, width), split["dtype"], len(split["moments"]))


def open_shards(root: Path, split: Mapping[str, Any]) -> list[Header]:
    """Return the header of every shard of a split, compared with the manifest; no tensor is read."""
    headers = []
    for entry in split["shards"]:
        file = root / entry["file"]
        if file.name != entry["file"]:
            raise _damaged(root / MANIFEST, f"it names {entry['file']} outside of the cache")
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing: run the command that made the cache again")
        header = read_header(file)
        if header.layout != layout_from_manifest(split, entry["count"]):
            raise _damaged(file, f"its tensors are not those of {entry['count']} images")
        if header.sha256 != entry["header"] or header.metadata.get("sha256") != entry["sha256"]:
            raise _damaged(file, f"its header differs from {MANIFEST}")
        headers.append(header)
    count = sum(header.layout.count for header in headers)
    if count != split["count"]:
        raise _damaged(root / MANIFEST, f"its shards hold {count} images, not {split['count']}")
    return headers


def map_shard(header: Header) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Map latents (moments, n, views, c, h, w) and labels (n,) of a shard, by one map: each keeps a file open."""
    layout, pages = header.layout, np.memmap(header.file, np.uint8, "r", header.start)
    start = {name: entry["data_offsets"][0] for name, entry in layout.tensors.items()}
    labels: npt.NDArray[np.int64] = np.frombuffer(pages, np.int64, layout.count, start["label"])
    shape = (layout.moments, layout.count, layout.views, *layout.shape)
    # The log-variances directly follow the means, so both are one array.
    latents = np.frombuffer(pages, layout.dtype, math.prod(shape), start["mean"]).reshape(shape)
    return latents, labels
