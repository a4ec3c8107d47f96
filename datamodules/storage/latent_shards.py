"""The format of cached latents: shards in the layout of safetensors, and a manifest that tells of all of them.

A shard holds `label` and `index` (int64, n), then `mean` and, unless the encoder is deterministic, `logvar` (both
n, views, c, h, w; raw, before scale and shift). `asyncdiff.latents.cache` writes them.
"""

import hashlib
import json
import math
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

VERSION = 1
MANIFEST = "manifest.json"
SUFFIX = ".safetensors"
LENGTH = 8  # bytes that tell the length of the header
MAX_HEADER = 10**8  # safetensors' own bound
CHUNK = 1 << 24  # bytes hashed at a time
NAMES = {"float16": "F16", "float32": "F32", "int64": "I64"}  # of types, in safetensors
REMEDY = "delete it and run the command again"

Shape = tuple[int, int, int]


class DamagedError(ValueError):
    """A file that is not what was written."""


class Layout(NamedTuple):
    """What the tensors of a shard look like.

    Attributes:
        count: images.
        views: of each: 1, or 2 with the mirrored one.
        shape: of a latent, (c, h, w).
        dtype: "float16" or "float32".
        moments: 2 with a log-variance, 1 without.
    """

    count: int  # type: ignore[assignment]  # of tuples nothing is counted here
    views: int
    shape: Shape
    dtype: str
    moments: int

    @property
    def stored(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Type and shape of every tensor, in the order of the file."""
        latents = (self.dtype, (self.count, self.views, *self.shape))
        heads = {"label": ("int64", (self.count,)), "index": ("int64", (self.count,))}
        return heads | dict.fromkeys(["mean", "logvar"][: self.moments], latents)

    @property
    def tensors(self) -> dict[str, dict[str, Any]]:
        """The entries of safetensors' header."""
        entries, end = {}, 0
        for name, (dtype, shape) in self.stored.items():
            start, end = end, end + math.prod(shape) * np.dtype(dtype).itemsize
            entries[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        return entries

    @property
    def bytes(self) -> int:
        """Of all tensors."""
        return next(reversed(self.tensors.values()))["data_offsets"][1]


class Header(NamedTuple):
    """The beginning of a shard.

    Attributes:
        metadata: what was written with it.
        tensors: their entries.
        start: byte at which the tensors begin.
        sha256: of all bytes before.
    """

    metadata: dict[str, str]
    tensors: dict[str, Any]
    start: int
    sha256: str


def shard_name(split: str, number: int, of: int) -> str:
    """The file of a shard."""
    return f"{split}-{number:05d}-of-{of:05d}{SUFFIX}"


def canonical_json(value: Any) -> str:
    """JSON that is the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def read_header(file: Path) -> Header:
    """The header of a shard; raises FileNotFoundError, or DamagedError where it is none."""
    with file.open("rb") as stream:
        first = stream.read(LENGTH)
        size = int.from_bytes(first, "little")
        if len(first) < LENGTH or not size <= min(MAX_HEADER, os.fstat(stream.fileno()).st_size - LENGTH):
            raise DamagedError(f"{file} is damaged, it has no header: {REMEDY}")
        text = stream.read(size)
    try:
        entries = json.loads(text)
        metadata = entries.pop("__metadata__")
        whole = all(isinstance(value, str) for value in metadata.values())
    except (ValueError, KeyError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{file} is damaged, its header cannot be read: {REMEDY}") from error
    if not whole:
        raise DamagedError(f"{file} is damaged, its header has other metadata: {REMEDY}")
    return Header(metadata, entries, LENGTH + size, hashlib.sha256(first + text).hexdigest())


def layout_from_header(file: Path, header: Header) -> Layout:
    """What the header says of itself; DamagedError where it says nothing."""
    try:
        count, views, channels, height, width = header.tensors["mean"]["shape"]
        dtype = {short: name for name, short in NAMES.items()}[header.tensors["mean"]["dtype"]]
        whole = all(isinstance(number, int) and number >= 0 for number in (count, views, channels, height, width))
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{file} is damaged, its header cannot be read: {REMEDY}") from error
    if not whole:
        raise DamagedError(f"{file} is damaged, its header has other shapes: {REMEDY}")
    return Layout(count, views, (channels, height, width), dtype, 2 if "logvar" in header.tensors else 1)


def check_shard(file: Path, layout: Layout, header: Header) -> None:
    """Raise DamagedError unless the file has the length and the tensors of the layout."""
    if header.tensors != layout.tensors:
        raise DamagedError(f"{file} is damaged, its tensors are not those of {layout.count} images: {REMEDY}")
    size, expected = file.stat().st_size, header.start + layout.bytes
    if size != expected:
        raise DamagedError(f"{file} is damaged, it must have {expected} bytes, got {size}: {REMEDY}")


def check_sha256(file: Path, header: Header) -> None:
    """Raise DamagedError unless the tensors have the SHA-256 that the header tells. Reads all of the file."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        stream.seek(header.start)
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != header.metadata.get("sha256"):
        raise DamagedError(f"{file} is damaged, its SHA-256 is not what was written: {REMEDY}")


def read_manifest(root: Path) -> dict[str, Any]:
    """What a cache tells of itself; one line where there is none, or one of another version."""
    file = root / MANIFEST
    if not file.is_file():
        what = "a cache that is not complete" if any(root.glob(f"*{SUFFIX}")) else "no cache"
        raise FileNotFoundError(
            f"root must be a folder that `python -m asyncdiff cache-latents` has finished, got {root}, {what}: run the "
            "command (again), it goes on where it stopped"
        )
    try:
        manifest = json.loads(file.read_text())
        version, told = manifest["version"], manifest.pop("sha256", None)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {REMEDY}") from error
    if version != VERSION:
        raise ValueError(f"{file} must be of version {VERSION}, got {version}: cache the latents with this release")
    if told not in (None, manifest_sha256(manifest)):  # none in caches of earlier releases
        raise ValueError(f"{file} is damaged, its SHA-256 is not what was written: {REMEDY}")
    return dict(manifest)


def manifest_sha256(manifest: Mapping[str, Any]) -> str:
    """The SHA-256 of a manifest without its own."""
    return hashlib.sha256(canonical_json(manifest).encode()).hexdigest()


def layout_from_manifest(split: Mapping[str, Any], count: int) -> Layout:
    """The layout of a shard of so many images, from the manifest's entry of its split."""
    channels, height, width = split["shape"]
    return Layout(count, split["views"], (channels, height, width), split["dtype"], len(split["moments"]))


def open_shards(root: Path, split: Mapping[str, Any]) -> list[tuple[Path, Layout, Header]]:
    """Every shard of a manifest's split, its header compared with the manifest; no tensor is read."""
    found = []
    for entry in split["shards"]:
        if Path(entry["file"]).name != entry["file"]:
            raise DamagedError(f"{root / MANIFEST} is damaged, it names {entry['file']} outside of the cache: {REMEDY}")
        file, layout = root / entry["file"], layout_from_manifest(split, entry["count"])
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing: run the command that made the cache again")
        header = read_header(file)
        check_shard(file, layout, header)
        if header.sha256 != entry["header"] or header.metadata.get("sha256") != entry["sha256"]:
            raise DamagedError(f"{file} is damaged, its header is not what {MANIFEST} tells: {REMEDY}")
        found.append((file, layout, header))
    count = sum(layout.count for _, layout, _ in found)
    if count != split["count"]:
        raise DamagedError(
            f"{root / MANIFEST} is damaged, its shards hold {count} images, not {split['count']}: {REMEDY}"
        )
    return found


def latents_and_labels(pages: mmap.mmap, layout: Layout, start: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Latents and labels in the bytes of a shard, whose tensors begin at `start`."""
    places = {name: start + entry["data_offsets"][0] for name, entry in layout.tensors.items()}
    labels: npt.NDArray[np.int64] = np.frombuffer(pages, np.int64, layout.count, places["label"])
    shape = (layout.moments, layout.count, layout.views, *layout.shape)
    # The log-variances follow the means: one array.
    latents = np.frombuffer(pages, layout.dtype, int(np.prod(shape)), places["mean"]).reshape(shape)
    return latents, labels
