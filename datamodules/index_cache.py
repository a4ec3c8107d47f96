"""Cache of data set indices: arrays that are built once, stored on disk and memory-mapped by every process.

Nothing is ever written to the working directory or next to the data. The cache is `$ASYNCDIFF_CACHE`, else
`$XDG_CACHE_HOME/asyncdiff`, else `~/.cache/asyncdiff`, and may be deleted at any time.
"""

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import socket
import tempfile
import warnings
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from datamodules.regular_files import open_regular

Arrays = dict[str, npt.NDArray[Any]]

EDGE = 1 << 20  # bytes hashed at either end of a file
CHECKSUM = 4  # bytes of the checksum that ends an index
ALIGNMENT = 64  # bytes between the possible starts of arrays in an index
HEADERS = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}


class MappedArray(np.ndarray[Any, Any]):
    """Memory-mapped array that is pickled as its place in a file, for spawned workers; parts are pickled as values."""

    place: tuple[Any, ...] | None = None  # arguments of `map_array`; parts do not inherit it
    version: tuple[int, int] | None = None  # of the file, see `_version`

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Return how to map the array again, or its values if the file was replaced or deleted in the meantime."""
        if self.place is None or self.version != _version(self.place[0]):
            return np.asarray(self).__reduce_ex__(protocol)
        return map_array, self.place


def map_array(file: str, kind: npt.DTypeLike, offset: int, shape: tuple[int, ...], order: Any) -> MappedArray:
    """Map an array at an offset of a file, read-only."""
    with open(file, "rb") as stream:
        return _map_open(stream, kind, offset, shape, order)


def map_npy(file: Path) -> MappedArray:
    """Map the array of a .npy file; refuse pickled objects, because unpickling can run any code."""
    with open_regular(file) as stream:
        return _map_next(stream)


def _map_open(stream: IO[bytes], kind: npt.DTypeLike, offset: int, shape: tuple[int, ...], order: Any) -> MappedArray:
    """Map an array of an open file, which another one may replace at any moment."""
    array = np.memmap(stream, kind, "r", offset, shape, order).view(MappedArray)
    array.place = (os.path.abspath(stream.name), kind, offset, shape, order)
    array.version = _version(stream.fileno())
    return array


def _version(file: str | int) -> tuple[int, int] | None:
    """Return size and modification time of a file, None if it does not exist."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def cache_folder() -> Path:
    """Return the folder of the cache."""
    if folder := os.environ.get("ASYNCDIFF_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "asyncdiff"


def file_fingerprint(file: Path) -> dict[str, Any]:
    """Return what identifies the content of a file: path, size, modification time, and a hash of both ends.

    Hashing a whole file of 100 GB would take minutes; the ends contain the headers of archives and databases.
    """
    with open_regular(file) as stream:
        status = os.fstat(stream.fileno())
        ends = stream.read(EDGE)
        stream.seek(max(0, status.st_size - EDGE))
        ends += stream.read(EDGE)
    digest = hashlib.sha256(ends).hexdigest()
    return {"file": os.path.realpath(file), "size": status.st_size, "time": status.st_mtime_ns, "ends": digest}


def cached_arrays(
    kind: str,
    fingerprint: Any,
    build: Callable[[], Mapping[str, npt.NDArray[Any]]],
    *,
    is_valid: Callable[[Arrays], bool] = lambda arrays: True,
) -> Arrays:
    """Return the arrays of `build()`, from the cache if it was called with the same `fingerprint` before.

    Several processes may build at the same time; the last result is kept, and no process ever sees half of it. If the
    cache cannot be written to, warn and return the arrays in memory.

    Args:
        kind: what is indexed, in lower case; prefix of the file's name.
        fingerprint: JSON-serializable value that identifies the data, such as `file_fingerprint` of its files.
        build: function that builds the arrays; none may contain Python objects.
        is_valid: function that checks whether the cached arrays are still correct, where the fingerprint is not enough.

    Returns:
        The arrays by name, memory-mapped where they are cached.
    """
    digest = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()
    file = cache_folder() / f"{kind}-{digest[:24]}.index"
    with contextlib.suppress(Exception):  # missing, damaged or of another format
        if is_valid(cached := _read_index(file)):
            return cached
    arrays = {name: np.ascontiguousarray(array) for name, array in build().items()}
    try:
        _write_index(file, arrays)
        return _read_index(file)
    except OSError as error:
        warnings.warn(
            f"cannot write the index {file}: {error}; it will be built again every time: set ASYNCDIFF_CACHE to a "
            "writable folder",
            stacklevel=2,
        )
        return arrays


def _read_index(file: Path) -> Arrays:
    """Map the arrays of a file; raise any exception if it is missing, damaged or not an index."""
    with file.open("rb") as stream:
        content = np.memmap(stream, mode="r")
        if zlib.crc32(content[:-CHECKSUM].data) != int.from_bytes(content[-CHECKSUM:].tobytes(), "little"):
            raise ValueError(f"{file} must have its checksum, got another one: delete it")
        stream.seek(0)
        return {str(name): _map_next(stream) for name in np.load(stream, allow_pickle=False)}


def _write_index(file: Path, arrays: Arrays) -> None:
    """Write names, arrays and a checksum atomically; processes that map a replaced file keep its bytes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    mark = f".index-{socket.gethostname()}-"  # of temporary files of this machine
    _remove_unlocked(file.parent, mark)
    with _create_locked(file.parent, f".{file.stem}{mark}") as stream:
        try:
            np.save(stream, list(arrays))
            for array in arrays.values():
                stream.seek(-stream.tell() % ALIGNMENT, os.SEEK_CUR)
                np.save(stream, array, allow_pickle=False)
            stream.flush()
            stream.write(zlib.crc32(np.memmap(stream.name, mode="r").data).to_bytes(CHECKSUM, "little"))
            stream.flush()
            os.replace(stream.name, file)
        finally:
            Path(stream.name).unlink(missing_ok=True)


def _create_locked(folder: Path, prefix: str) -> IO[bytes]:
    """Create a temporary file with a lock that the kernel frees when this process ends, in any way."""
    while True:
        stream = tempfile.NamedTemporaryFile(dir=folder, prefix=prefix, delete=False)  # noqa: SIM115  the caller closes it
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(stream, fcntl.LOCK_EX)
        if os.fstat(stream.fileno()).st_nlink:  # else another process has removed it before it was locked
            return stream
        stream.close()


def _remove_unlocked(folder: Path, mark: str) -> None:
    """Remove the temporary files that processes on this machine left when they were killed."""
    for left in folder.glob(f".*{glob.escape(mark)}*"):
        with contextlib.suppress(OSError), left.open("r+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


def _map_next(stream: IO[bytes]) -> MappedArray:
    """Map the .npy array at the next aligned position of a file, and move behind it."""
    stream.seek(-stream.tell() % ALIGNMENT, os.SEEK_CUR)
    shape, columns_first, kind = npy_header(stream)
    begin = stream.tell()
    array = _map_open(stream, kind, begin, shape, "F" if columns_first else "C")
    stream.seek(begin + array.nbytes)
    return array


def npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read shape, whether columns come first, and data type from the header of a .npy file; refuse Python objects."""
    version, _ = np.lib.format.read_magic(stream)
    if version not in HEADERS:
        raise ValueError(f"its format has the unknown version {version}")
    shape, columns_first, kind = HEADERS[version](stream)
    if kind.hasobject:  # mapped, their bytes would be used as addresses
        raise ValueError("it holds Python objects")
    return shape, columns_first, kind
