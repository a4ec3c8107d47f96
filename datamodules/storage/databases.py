"""LMDB files of encoded images, opened once in each process and never used across a fork."""

import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.images.encoded import Bytes
from datamodules.index_cache import Arrays, cached_arrays, file_fingerprint
from datamodules.storage.database_pages import beginning, checked_keys


class Database:
    """One data.mdb, read only. Get it from `open_database`, as LMDB must not open a file twice in one process.

    Args:
        file: its path.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._environment: Any = None
        self._process = 0

    def __reduce__(self) -> tuple[Callable[[Path], "Database"], tuple[Path]]:
        """For a worker that is spawned: the file's name."""
        return open_database, (self.file,)

    def value(self, key: bytes) -> Bytes:
        """What is stored under a key; raises KeyError, or what LMDB raises on a damaged page."""
        with self._opened().begin(buffers=True) as transaction:
            found = transaction.get(key)
            if found is None:
                raise KeyError("the database has no such key")
            return np.array(found, dtype=np.uint8)  # a copy: the buffer ends with the transaction

    def index(self) -> Arrays:
        """All keys in their order, one after the other, as `keys` uint8 (bytes,), and `ends` int64 (n,) of each."""
        self._opened()  # refuses a file that is damaged before anything is kept of it
        return cached_arrays("lmdb", file_fingerprint(self.file), self._keys)

    def _keys(self) -> Arrays:
        """The index, from a walk over the leaves of the tree, which are checked; values are not touched."""
        text, ends = bytearray(), []
        try:
            for key in checked_keys(self.file):
                text += key
                ends.append(len(text))
        except ValueError as error:
            raise _refused(self.file, error) from error
        return {"keys": np.frombuffer(bytes(text), np.uint8), "ends": np.array(ends, np.int64)}

    def _opened(self) -> Any:
        """The environment of this process."""
        if self._process != os.getpid():
            if self._environment is not None:  # the parent's, of which a fork has a copy: this closes the copy
                self._environment.close()
                self._environment = None
            self._environment, self._process = _environment(self.file), os.getpid()
        return self._environment


_DATABASES: "weakref.WeakValueDictionary[tuple[int, int], Database]" = weakref.WeakValueDictionary()


def open_database(file: Path) -> Database:
    """The one Database of a file in this process; nothing is opened yet. Raises OSError where there is no file."""
    status = file.stat()
    return _DATABASES.setdefault((status.st_dev, status.st_ino), Database(file))


def _environment(file: Path) -> Any:
    """The opened file; raises where LMDB is not installed, or the file is none of it or cut off."""
    try:
        import lmdb
    except ImportError as error:
        raise ImportError(f"{file} needs lmdb, which is not installed: pip install lmdb") from error
    try:
        # LMDB maps the file: to touch a page beyond its end would kill the process without a word.
        beginning(file)
        # No lock file is written beside the data; pages are fetched in random order, so reading ahead is in vain.
        environment = lmdb.open(str(file.parent), readonly=True, lock=False, readahead=False, meminit=False)
    except (lmdb.Error, ValueError) as error:
        raise _refused(file, error) from error
    return environment


def _refused(file: Path, error: Exception) -> ValueError:
    return ValueError(f"{file} cannot be read as an LMDB file: {error}; copy or extract it again")
