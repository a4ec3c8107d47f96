"""Files in a zip, read in place, or in a folder, behind one interface."""

import os
import struct
import weakref
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.images.encoded import Bytes
from datamodules.index_cache import Arrays, cached_arrays, file_fingerprint, memmaps_to_paths, paths_to_memmaps

HEADER = struct.Struct(
    "<4s22xHH"
)  # of a member (APPNOTE 4.3.7): signature, ..., lengths of the name and the extra field
MAX_EXTRA = 64  # bytes read for the extra field, so that one read is usually enough
STORED, DEFLATED = 0, 8
MAX_OTHERS = 1000  # number of files with other suffixes whose headers are checked
# Exceptions of zipfile for damaged files; RuntimeError and its subclass NotImplementedError are for encrypted files and
# unknown compression methods.
DAMAGED = (zipfile.BadZipFile, struct.error, zlib.error, EOFError, ValueError, OSError, RuntimeError)


class Members(ABC):
    """Files of a zip or folder with given suffixes, sorted by name.

    Attributes:
        root: the zip or folder.
        names: paths relative to `root`, bytes (n,).
    """

    root: Path
    names: np.ndarray

    @abstractmethod
    def read(self, index: int) -> Bytes:
        """Return the content of a file; raise OSError or ValueError if it is damaged."""

    @abstractmethod
    def text(self, name: str) -> bytes | None:
        """Return the content of a file with any suffix; None if it does not exist."""

    def cached(self, kind: str, build: Callable[[], Arrays]) -> Arrays:
        """Return `build()`, from the cache if that is faster than building again."""
        return build()

    def name(self, index: int) -> str:
        """Return the path of a file relative to `root`."""
        return os.fsdecode(self.names[index])

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.names)


class FolderMembers(Members):
    """Files below a folder, without hidden ones.

    Args:
        root: the folder.
        suffixes: suffixes of the files, in lower case with the dot.
    """

    def __init__(self, root: Path, suffixes: Collection[str]) -> None:
        paths = [
            Path(folder, name).relative_to(root).as_posix()
            for folder, _, files in os.walk(root, followlinks=True)
            for name in files
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes
        ]
        self.root, self.names = root, np.array(sorted(map(os.fsencode, paths)), dtype=np.bytes_)

    def read(self, index: int) -> Bytes:
        return np.fromfile(self.root / self.name(index), dtype=np.uint8)

    def text(self, name: str) -> bytes | None:
        return (self.root / name).read_bytes() if (self.root / name).is_file() else None


class ZipMembers(Members):
    """Files in a zip, stored or deflated; their positions are read once and cached.

    Args:
        root: the zip.
        suffixes: suffixes of the files, in lower case with the dot.

    Raises:
        ValueError: the file is not a zip, is truncated, or holds files that are encrypted or compressed otherwise.
    """

    def __init__(self, root: Path, suffixes: Collection[str]) -> None:
        self.root, self.suffixes = root, frozenset(suffixes)
        self.fingerprint = file_fingerprint(root) | {"suffixes": sorted(suffixes)}
        arrays = cached_arrays("zip", self.fingerprint, self._directory)
        self.names, self.begins, self.sizes = arrays["names"], arrays["begins"], arrays["sizes"]
        self.packed, self.methods, self.sums = arrays["packed"], arrays["methods"], arrays["sums"]
        self._descriptor: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Pickle file names instead of mapped arrays and the open file, for spawned workers."""
        return memmaps_to_paths(self.__dict__ | {"_descriptor": None})

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Map the files again."""
        self.__dict__.update(paths_to_memmaps(state))

    def read(self, index: int) -> Bytes:
        data = self._read_raw(int(self.begins[index]), int(self.packed[index]), self.names[index])
        if self.methods[index] == DEFLATED:
            # At most the size in the directory: a zip bomb could decompress to gigabytes.
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, int(self.sizes[index]) + 1)
        if zlib.crc32(data) != self.sums[index]:
            raise ValueError("its checksum differs from the directory of the zip")
        return np.frombuffer(bytearray(data), dtype=np.uint8)  # writable, as decoders require

    def text(self, name: str) -> bytes | None:
        """Return the content of a file after reading the whole directory: use it for few files."""
        try:
            with zipfile.ZipFile(self.root) as archive:
                return archive.read(name) if name in archive.NameToInfo else None
        except DAMAGED as error:
            raise ValueError(f"{self.root}/{name} cannot be read: {error}; copy or write it again") from error

    def cached(self, kind: str, build: Callable[[], Arrays]) -> Arrays:
        return cached_arrays(kind, self.fingerprint, build)

    def _directory(self) -> Arrays:
        """Read offset of the local header, size and compression of every file from the zip's directory."""
        try:
            with zipfile.ZipFile(self.root) as archive:
                selected: list[zipfile.ZipInfo] = []
                others: list[zipfile.ZipInfo] = []
                for info in archive.infolist():
                    (selected if os.path.splitext(info.filename)[1].lower() in self.suffixes else others).append(info)
                # The directory has no checksums: a damaged name could hide an image or dataset.json. Opening a member
                # compares the name with its local header; for images this happens when they are read.
                for info in others[:MAX_OTHERS]:
                    archive.open(info).close()
        except DAMAGED as error:
            raise ValueError(f"{self.root} cannot be read as a zip: {error}; copy or write it again") from error
        selected.sort(key=lambda info: os.fsencode(info.filename))
        for info in selected:
            if info.flag_bits & 1 or info.compress_type not in (STORED, DEFLATED):
                raise ValueError(
                    f"{self.root} must hold stored or deflated files, got {info.filename} encrypted or compressed "
                    "otherwise: write it again as a plain zip"
                )
        return {
            "names": np.array([os.fsencode(info.filename) for info in selected], dtype=np.bytes_),
            "begins": np.array([info.header_offset for info in selected], dtype=np.int64),
            "sizes": np.array([info.file_size for info in selected], dtype=np.int64),
            "packed": np.array([info.compress_size for info in selected], dtype=np.int64),
            "methods": np.array([info.compress_type for info in selected], dtype=np.uint8),
            "sums": np.array([info.CRC for info in selected], dtype=np.uint32),
        }

    def _read_raw(self, begin: int, packed: int, known: bytes) -> bytes:
        """Return the stored bytes of a file, which follow a local header of variable length.

        Args:
            begin: offset of the local header.
            packed: number of stored bytes.
            known: name of the file in the directory.

        Returns:
            The bytes before decompression.
        """
        head = HEADER.size + len(known) + MAX_EXTRA
        data = os.pread(self._open(), head + packed, begin)
        signature, name, extra = HEADER.unpack_from(data) if len(data) >= HEADER.size else (b"", 0, 0)
        if signature != b"PK\3\4":
            raise ValueError(f"no file starts at byte {begin} of the zip")
        own = data[HEADER.size : HEADER.size + name]
        if known.isascii() and b"\\" not in own and own != known:  # other names may have another encoding there
            raise ValueError(f"its name in the zip's directory differs from its local header, {os.fsdecode(own)}")
        first = HEADER.size + name + extra
        if first > head:
            data += os.pread(self._open(), first - head, begin + len(data))
        if len(data) < first + packed:
            raise ValueError(f"the zip ends {first + packed - len(data)} bytes too early")
        return data[first : first + packed]

    def _open(self) -> int:
        """Return a file descriptor for reads at offsets, which forked processes may share."""
        if self._descriptor is None:
            self._descriptor = os.open(self.root, os.O_RDONLY)
            weakref.finalize(self, os.close, self._descriptor)
        return self._descriptor


def open_members(root: Path, suffixes: Collection[str], argument: str) -> Members:
    """Open the files of a zip or folder with these suffixes; `argument` is the argument to name in errors."""
    if root.is_dir():
        return FolderMembers(root, suffixes)
    if not root.is_file():
        raise FileNotFoundError(f"{argument} must be a zip or a folder, got {root}: no such file; check the path")
    return ZipMembers(root, suffixes)
