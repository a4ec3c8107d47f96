"""Cache of data set indices: arrays that are built once, stored on disk and memory-mapped by every process.

Nothing is ever written to the working directory or next to the data. The cache is `$ASYNCDIFF_CACHE`, else
`$XDG_CACHE_HOME/asyncdiff`, else `~/.cache/asyncdiff`, and may be deleted at any time.
"""

import hashlib
import json
import os
import shutil
import tempfile
import warnings
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]

EDGE = 1 << 20  # bytes hashed at either end of a file


def cache_folder() -> Path:
    """Return the folder of the cache."""
    if folder := os.environ.get("ASYNCDIFF_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "asyncdiff"


def file_fingerprint(file: Path) -> dict[str, Any]:
    """Return what identifies the content of a file: path, size, modification time, and a hash of both ends.

    Hashing a whole file of 100 GB would take minutes; the ends contain the headers of archives and databases.
    """
    status = file.stat()
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        digest.update(stream.read(EDGE))
        stream.seek(max(0, status.st_size - EDGE))
        digest.update(stream.read(EDGE))
    return {
        "file": os.path.realpath(file),
        "size": status.st_size,
        "time": status.st_mtime_ns,
        "ends": digest.hexdigest(),
    }


def cached_arrays(
    kind: str,
    fingerprint: Any,
    build: Callable[[], Mapping[str, npt.NDArray[Any]]],
    *,
    is_valid: Callable[[Arrays], bool] = lambda arrays: True,
) -> Arrays:
    """Return the arrays of `build()`, from the cache if it was called with the same `fingerprint` before.

    Several processes may build at the same time; one result is kept, and no process ever sees half of an entry. If
    the cache cannot be written to, warn and return the arrays in memory.

    Args:
        kind: what is indexed, in lower case; prefix of the entry's name.
        fingerprint: JSON-serializable value that identifies the data, such as `file_fingerprint` of its files; its hash
            is part of the entry's name.
        build: function that builds the arrays; none may contain Python objects.
        is_valid: function that checks whether the cached arrays are still correct, where the fingerprint is not enough;
            otherwise they are built again and replaced.

    Returns:
        The arrays by name, memory-mapped where they are cached.
    """
    text = json.dumps(fingerprint, sort_keys=True)
    entry = cache_folder() / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:24]}"
    cached = _read_entry(entry)
    if cached is not None and is_valid(cached):
        return cached
    arrays = {name: np.ascontiguousarray(array) for name, array in build().items()}
    try:
        _write_entry(entry, arrays, text, replace=cached is not None)
    except OSError as error:
        warnings.warn(
            f"cannot write the index {entry}: {error}; it will be built again every time: set ASYNCDIFF_CACHE to a "
            "writable folder",
            stacklevel=2,
        )
        return arrays
    cached = _read_entry(entry)
    return arrays if cached is None else cached


def _read_entry(entry: Path) -> Arrays | None:
    """Map the arrays of an entry; return None if it is missing, unreadable or fails its checksums."""
    try:
        sums = json.loads((entry / "index.json").read_text())["sums"]
        if any(_crc32(_file(entry, name)) != expected for name, expected in sums.items()):
            return None
        return {name: np.load(_file(entry, name), mmap_mode="r", allow_pickle=False) for name in sums}
    except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError):
        return None


def _file(entry: Path, name: str) -> Path:
    """Return the file of an array; raise ValueError for a name that could lead outside the entry."""
    if not name.isidentifier():
        raise ValueError(f"array names must be identifiers, got {name}: delete {entry}")
    return entry / f"{name}.npy"


def _crc32(file: Path) -> int:
    """Return the CRC-32 of a file, at a gigabyte per second; indices of millions of images are a tenth of that."""
    crc = 0
    with file.open("rb") as stream:
        while chunk := stream.read(EDGE):
            crc = zlib.crc32(chunk, crc)
    return crc


def _write_entry(entry: Path, arrays: Arrays, fingerprint: str, *, replace: bool) -> None:
    """Write an entry atomically: a temporary folder that is renamed when it is complete.

    Other processes may still map a replaced entry: they keep its bytes until they end.
    """
    entry.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{entry.name}-", dir=entry.parent))
    try:
        for name, array in arrays.items():
            np.save(new / f"{name}.npy", array, allow_pickle=False)
        sums = {name: _crc32(_file(new, name)) for name in arrays}
        (new / "index.json").write_text(json.dumps({"sums": sums, "of": json.loads(fingerprint)}, indent=1))
        if entry.exists() and (replace or _read_entry(entry) is None):
            shutil.rmtree(entry, ignore_errors=True)
        new.rename(entry)
    except OSError:
        if _read_entry(entry) is None:  # otherwise another process was faster
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)


class MemmapPath(NamedTuple):
    """Path of a .npy file that stands for the memory-mapped array of all of it."""

    file: str


def memmaps_to_paths(state: Mapping[str, Any]) -> dict[str, Any]:
    """Replace memory-mapped arrays among an object's attributes by their paths, to pickle it for a spawned worker."""
    return {name: MemmapPath(str(value.filename)) if _is_whole_file(value) else value for name, value in state.items()}


def paths_to_memmaps(state: Mapping[str, Any]) -> dict[str, Any]:
    """Map the arrays again: the inverse of `memmaps_to_paths`."""
    return {
        name: np.load(value.file, mmap_mode="r", allow_pickle=False) if isinstance(value, MemmapPath) else value
        for name, value in state.items()
    }


def _is_whole_file(value: Any) -> bool:
    """Whether this is a whole memory-mapped .npy file rather than a view of a part."""
    if not isinstance(value, np.memmap) or value.filename is None or isinstance(value.base, np.ndarray):
        return False
    return str(value.filename).endswith(".npy")
