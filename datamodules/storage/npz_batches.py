"""Images in the layout of the downsampled ImageNet: npz files of bytes and labels, put together in one mapped array."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from datamodules.index_cache import file_fingerprint

Labels = npt.NDArray[np.int64]
CHUNK = 1 << 24  # bytes read at a time
SPARE = 1 << 28  # bytes that are left free on the disk
HEADERS = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}


class NpzBatch(NamedTuple):
    """A file: its images' number and values, and their labels as they are stored."""

    file: Path
    shape: tuple[int, int]
    labels: Labels


def open_batch(file: Path, *, size: int, numbers: int) -> NpzBatch:
    """What a file holds, its images unread.

    Args:
        file: an npz with `data`, uint8 (n, 3 * size * size), and `labels`, (n,) from 1 to `numbers`.
        size: pixels of a side.
        numbers: the largest label.

    Raises:
        ValueError: it is no such file, or is damaged.
    """
    with one_line_errors(file), open_data(file) as (_, shape):
        labels = np.load(file, allow_pickle=False)["labels"].astype(np.int64).reshape(-1)
    if len(shape) != 2 or shape[1] % 3 or not shape[0]:
        raise ValueError(f"data of {file} must have shape (n, {3 * size * size}), got {shape}: download it anew")
    if shape[1] != 3 * size * size:
        raise ValueError(f"size must be {round((shape[1] / 3) ** 0.5)}, as in {file}, got {size}: set it so")
    if len(labels) != shape[0] or labels.min() < 1 or labels.max() > numbers:
        raise ValueError(
            f"labels of {file} must be {shape[0]} numbers from 1 to {numbers}, got {len(labels)} from "
            f"{labels.min(initial=numbers + 1)} to {labels.max(initial=0)}: download it anew"
        )
    return NpzBatch(file, (shape[0], shape[1]), labels)


@contextlib.contextmanager
def one_line_errors(file: Path) -> Iterator[None]:
    """One line that names the file, for all that may go wrong in reading it."""
    try:
        yield
    except KeyError as error:
        raise ValueError(
            f"{file} must hold data and labels, got it without: {error.args[0]}; download it anew"
        ) from error
    except Exception as error:  # there is no telling what is raised on damaged archives and headers
        line = str(error).split("\n")[0]
        raise ValueError(f"{file} cannot be read: {line}; download it anew") from error


@contextlib.contextmanager
def open_data(file: Path) -> Iterator[tuple[Any, tuple[int, ...]]]:
    """The stream of a file's images, byte for byte, and their shape."""
    with zipfile.ZipFile(file) as archive, archive.open("data.npy") as stream:
        version = np.lib.format.read_magic(stream)[0]
        shape, columns_first, kind = HEADERS[version](stream)
        if kind != np.uint8 or columns_first:
            raise ValueError(f"its data must be uint8 in rows, got {kind}{' in columns' * columns_first}")
        yield stream, shape


def merge_batches(parts: Mapping[str, Sequence[NpzBatch]], *, size: int, folder: Path) -> Path:
    """The folder of arrays NAME.npy, uint8 (n, 3, size, size), and NAME_labels.npy, of the files of every name.

    Made once, by one process at a time, for files that did not change since; a folder has its name when all is in it.

    Args:
        parts: files of every name, their images to follow one another.
        size: pixels of a side.
        folder: where the new one is made.

    Raises:
        ValueError: a file is damaged, the folder cannot be written to, or the disk is too small.
    """
    identity = {name: [file_fingerprint(batch.file) for batch in batches] for name, batches in parts.items()}
    text = json.dumps({"files": identity, "size": size, "form": 1}, sort_keys=True)
    made = folder / f"pixels{size}-{hashlib.sha256(text.encode()).hexdigest()[:24]}"
    if made.is_dir():
        return made
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(folder / f".{made.name}.lock"):
            if not made.is_dir():
                _make(parts, size=size, made=made)
    except OSError as error:
        raise ValueError(f"converted must be a folder to write to, got {folder}: {error}; set another one") from error
    return made


@contextlib.contextmanager
def exclusive_lock(file: Path) -> Iterator[None]:
    """Wait until no other process is in here, for the same file."""
    with file.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _make(parts: Mapping[str, Sequence[NpzBatch]], *, size: int, made: Path) -> None:
    needed = sum(rows * values for batches in parts.values() for _, (rows, values), _ in batches)
    for left in made.parent.glob(f".{made.name}-*"):  # by a process that was killed: this one is alone
        shutil.rmtree(left, ignore_errors=True)
    free = shutil.disk_usage(made.parent).free
    if free < needed + SPARE:
        raise ValueError(
            f"converted must have {(needed + SPARE) / 1e9:.1f} GB free, got {free / 1e9:.1f} GB in {made.parent}: free "
            "some, or set it to a folder on another disk"
        )
    rank_zero_info(f"putting {needed / 1e9:.1f} GB of images together in {made}, once for this machine")
    new = Path(tempfile.mkdtemp(prefix=f".{made.name}-", dir=made.parent))
    try:
        for name, batches in parts.items():
            np.save(new / f"{name}_labels.npy", np.concatenate([batch.labels for batch in batches]))
            with (new / f"{name}.npy").open("wb") as target:
                _write(target, batches, size)
        new.rename(made)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _write(target: BinaryIO, batches: Sequence[NpzBatch], size: int) -> None:
    """All images, one after the other: their bytes are in the right order already."""
    shape = (sum(batch.shape[0] for batch in batches), 3, size, size)
    np.lib.format.write_array_header_1_0(target, {"descr": "|u1", "fortran_order": False, "shape": shape})
    for batch in batches:
        left = batch.shape[0] * batch.shape[1]
        for chunk in _chunks(batch.file):
            target.write(chunk)
            left -= len(chunk)
        if left:
            raise ValueError(f"{batch.file} cannot be read: its data is {left} bytes too short; download it anew")
    target.flush()
    os.fsync(target.fileno())


def _chunks(file: Path) -> Iterator[bytes]:
    """The bytes of a file's images, some at a time; at the end of them, the zip's checksum has been compared."""
    with one_line_errors(file), open_data(file) as (stream, _):
        while chunk := stream.read(CHUNK):
            yield chunk
