"""LMDB files of encoded images, opened once per process and never used across a fork."""

import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.images.encoded import Bytes
from datamodules.index_cache import Arrays, cached_arrays, file_fingerprint
from datamodules.storage.database_pages import checked_keys, read_file_header


class Database:
    """One data.mdb, read only; create it with `open_database`, because a process must not open an LMDB file twice.

    Args:
        file: path of the data.mdb.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._environment: Any = None
        self._process = 0

    def __reduce__(self) -> tuple[Callable[[Path], "Database"], tuple[Path]]:
        """Pickle the path of the file only, for spawned workers."""
        return open_database, (self.file,)

    def value(self, key: bytes) -> Bytes:
        """Return the value of a key; raise KeyError, or what LMDB raises on a damaged page."""
        with self._open().begin(buffers=True) as transaction:
            value = transaction.get(key)
            if value is None:
                raise KeyError("the database has no such key")
            return np.array(value, dtype=np.uint8)  # a copy: the buffer ends with the transaction

    def index(self) -> Arrays:
        """Return all keys in order: concatenated `keys`, uint8 (bytes,), and the end of each, `ends`, int64 (n,)."""
        self._open()  # raises for a damaged file before anything is cached
        return cached_arrays("lmdb", file_fingerprint(self.file), self._keys)

    def _keys(self) -> Arrays:
        """Build the index by traversing and checking the pages of the tree; values are not read."""
        text, ends = bytearray(), []
        try:
            for key in checked_keys(self.file):
                text += key
                ends.append(len(text))
        except ValueError as error:
            raise _unreadable(self.file, error) from error
        return {"keys": np.frombuffer(bytes(text), np.uint8), "ends": np.array(ends, np.int64)}

    def _open(self) -> Any:
        """Return the LMDB environment of this process."""
        if self._process != os.getpid():
            if (
                self._environment is not None
            ):  # the parent's, of which a forked process has a copy: this closes the copy
                self._environment.close()
                self._environment = None
            self._environment, self._process = _open_environment(self.file), os.getpid()
        return self._environment


_DATABASES: "weakref.WeakValueDictionary[tuple[int, int], Database]" = weakref.WeakValueDictionary()


def open_database(file: Path) -> Database:
    """Return the only Database of a file in this process, not opened yet; raise OSError if there is no file."""
    status = file.stat()
    return _DATABASES.setdefault((status.st_dev, status.st_ino), Database(file))


def _open_environment(file: Path) -> Any:
    """Open a file with LMDB; raise if lmdb is not installed or the file is damaged."""
    try:
        import lmdb
    except ImportError as error:
        raise ImportError(f"{file} needs lmdb, which is not installed: pip install lmdb") from error
    try:
        # LMDB maps the file: reading a page beyond its end would kill the process without a message.
        read_file_header(file)
        # lock=False writes no lock file next to the data; readahead is useless for random access.
        environment = lmdb.open(str(file.parent), readonly=True, lock=False, readahead=False, meminit=False)
    except (lmdb.Error, ValueError) as error:
        raise _unreadable(file, error) from error
    return environment


def _unreadable(file: Path, error: Exception) -> ValueError:
    return ValueError(f"{file} cannot be read as an LMDB file: {error}; copy or extract it again")
