"""Files of the downsampled ImageNet: npz files of uint8 images and labels, merged into one memory-mapped array."""

import contextlib
import fcntl
import hashlib
import json
import math
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from datamodules.index_cache import file_fingerprint, npy_header

CHUNK = 1 << 24  # bytes read at a time
SPARE = 1 << 28  # bytes to leave free on the disk


class NpzBatch(NamedTuple):
    """One npz file.

    Attributes:
        file: path of the file.
        labels: labels as stored, int64 (n,).
        bytes: number of bytes of its images.
    """

    file: Path
    labels: npt.NDArray[np.int64]
    bytes: int


def open_batch(file: Path, *, size: int, numbers: int) -> NpzBatch:
    """Read the shape and labels of a file, but not its images.

    Args:
        file: an npz with `data`, uint8 (n, 3 * size * size), and `labels`, (n,) from 1 to `numbers`.
        size: side length in pixels.
        numbers: the largest label.

    Returns:
        The shape and labels of the file.

    Raises:
        ValueError: the file has another layout or is damaged.
    """
    with _open_data(file) as (_, shape):
        labels = np.load(file, allow_pickle=False)["labels"].astype(np.int64).reshape(-1)
    if len(shape) != 2 or shape[1] % 3 or not shape[0]:
        raise ValueError(f"data of {file} must have shape (n, {3 * size * size}), got {shape}: download it again")
    if shape[1] != 3 * size * size:
        raise ValueError(f"size must be {round((shape[1] / 3) ** 0.5)} as in {file}, got {size}: change size")
    if len(labels) != shape[0] or labels.min() < 1 or labels.max() > numbers:
        raise ValueError(
            f"labels of {file} must be {shape[0]} integers from 1 to {numbers}, got {len(labels)} from "
            f"{labels.min(initial=numbers + 1)} to {labels.max(initial=0)}: download it again"
        )
    return NpzBatch(file, labels, math.prod(shape))


def merge_batches(parts: Mapping[str, Sequence[NpzBatch]], *, size: int, folder: Path) -> Path:
    """Merge the files of every split into arrays NAME.npy, uint8 (n, 3, size, size), and NAME_labels.npy.

    This is done once, by one process at a time, unless the files change; the new folder is renamed when it is complete.

    Args:
        parts: files of every split, in order, by its name.
        size: side length in pixels.
        folder: parent of the new folder.

    Returns:
        The folder of the arrays.

    Raises:
        ValueError: a file is damaged, the folder is not writable, or the disk is full.
    """
    fingerprint = {name: [file_fingerprint(batch.file) for batch in batches] for name, batches in parts.items()}
    text = json.dumps({"files": fingerprint, "size": size, "form": 1}, sort_keys=True)
    made = folder / f"pixels{size}-{hashlib.sha256(text.encode()).hexdigest()[:24]}"
    if made.is_dir():
        return made
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f".{made.name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)  # until no other process holds it
                for left in folder.glob(f".{made.name}-*"):  # of a killed process
                    shutil.rmtree(left, ignore_errors=True)
            except OSError:  # a file system without locks: several processes may do the same, and the first one counts
                pass
            if not made.is_dir():
                _make(parts, size=size, made=made)
    except OSError as error:
        raise ValueError(f"converted must be a writable folder, got {folder}: {error}; set another one") from error
    return made


def _make(parts: Mapping[str, Sequence[NpzBatch]], *, size: int, made: Path) -> None:
    """Write the arrays to a temporary folder and rename it to `made`."""
    needed = sum(batch.bytes for batches in parts.values() for batch in batches)
    free = shutil.disk_usage(made.parent).free
    if free < needed + SPARE:
        raise ValueError(
            f"converted must have {(needed + SPARE) / 1e9:.1f} GB free, got {free / 1e9:.1f} GB in {made.parent}: "
            "free some, or set it to a folder on another disk"
        )
    rank_zero_info(f"merging {needed / 1e9:.1f} GB of images in {made}, once per machine")
    new = Path(tempfile.mkdtemp(prefix=f".{made.name}-", dir=made.parent))
    try:
        for name, batches in parts.items():
            labels = np.concatenate([batch.labels for batch in batches])
            np.save(new / f"{name}_labels.npy", labels)
            with (new / f"{name}.npy").open("wb") as target:
                header = {"descr": "|u1", "fortran_order": False, "shape": (len(labels), 3, size, size)}
                np.lib.format.write_array_header_1_0(target, header)
                for batch in batches:
                    for chunk in _chunks(batch):
                        target.write(chunk)
                target.flush()
                os.fsync(target.fileno())
        if not made.is_dir():
            new.rename(made)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _chunks(batch: NpzBatch) -> Iterator[bytes]:
    """Yield the bytes of a file's images, which are in the right order; the zip's checksum is compared at the end."""
    left = batch.bytes
    with _open_data(batch.file) as (stream, _):
        while chunk := stream.read(CHUNK):
            yield chunk
            left -= len(chunk)
        if left:
            raise ValueError(f"its data is {left} bytes too short")


@contextlib.contextmanager
def _open_data(file: Path) -> Iterator[tuple[IO[bytes], tuple[int, ...]]]:
    """Open the raw stream of a file's images; yield it with their shape, and turn any exception into one line."""
    try:
        with zipfile.ZipFile(file) as archive, archive.open("data.npy") as stream:
            shape, columns_first, kind = npy_header(stream)
            if kind != np.uint8 or columns_first:
                raise ValueError(f"its data must be uint8 in C order, got {kind}{' in Fortran order' * columns_first}")
            yield stream, shape
    except KeyError as error:
        raise ValueError(f"{file} must hold data and labels, got: {error.args[0]}; download it again") from error
    except Exception as error:  # damaged archives and headers may raise anything
        line = str(error).split("\n")[0]
        raise ValueError(f"{file} cannot be read: {line}; download it again") from error
