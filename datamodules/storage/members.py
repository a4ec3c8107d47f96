"""Files in a zip, read in place, or in a folder, behind one interface; and bytes of a file at any offset."""

import os
import struct
import weakref
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np

from datamodules.hidden_names import RULE, is_hidden
from datamodules.images.encoded import Bytes
from datamodules.index_cache import Arrays, cached_arrays, file_fingerprint
from datamodules.regular_files import check_regular, is_present, open_regular, read_regular
from datamodules.storage.file_lists import walk

HEADER = struct.Struct("<4s22xHH")  # of a member (APPNOTE 4.3.7): signature, lengths of the name and the extra field
EXTRA = 64  # bytes read for the extra field, so that one read is usually enough; the directory is longer
STORED, DEFLATED = 0, 8
MAX_OTHERS = 1000  # number of files with other suffixes whose headers are checked
MAX_TEXT = 2**30  # bytes of a file that is read as a whole; dataset.json has about 50 per image
# Exceptions of zipfile for damaged files; RuntimeError and its subclass NotImplementedError are for encrypted files and
# unknown compression methods.
DAMAGED = (zipfile.BadZipFile, struct.error, zlib.error, EOFError, ValueError, OSError, RuntimeError)


class FileBytes:
    """Bytes of a file at any offset; every process opens it on its first read, and forked processes may share it.

    Args:
        file: path of the file.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._descriptor: int | None = None

    def __reduce__(self) -> tuple[Callable[[Path], "FileBytes"], tuple[Path]]:
        """Pickle without the open file, for spawned workers."""
        return FileBytes, (self.file,)

    def read(self, offset: int, size: int) -> Bytes:
        """Return `size` bytes from an offset, writable as decoders require; raise ValueError if there are fewer."""
        if self._descriptor is None:
            stream = open_regular(self.file, buffering=0)
            self._descriptor = stream.fileno()
            weakref.finalize(self, stream.close)
        data: Bytes = np.empty(size, dtype=np.uint8)
        read = more = os.preadv(self._descriptor, [data.data], offset)
        while more and read < size:  # file systems over networks may return fewer bytes at once
            read += (more := os.preadv(self._descriptor, [data[read:].data], offset + read))
        if read < size:
            raise ValueError(f"the file ends {size - read} bytes too early")
        return data


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
        paths = [os.path.join(below, name) for below, _, files in walk(str(root), suffixes) for name in files]
        self.root, self.names = root, np.array(sorted(map(os.fsencode, paths)), dtype=np.bytes_)

    def read(self, index: int) -> Bytes:
        return read_regular(self.root / self.name(index))


class ZipMembers(Members):
    """Files in a zip, stored or deflated; their positions are read once and cached.

    `zipfile` would read them again in every worker: 5 s and 800 MB for the 1.3 million images of ImageNet.

    Args:
        root: the zip.
        suffixes: suffixes of the files, in lower case with the dot.

    Raises:
        ValueError: the file is not a zip, is truncated, or holds files that are encrypted or compressed otherwise.
    """

    def __init__(self, root: Path, suffixes: Collection[str]) -> None:
        self.root, self.bytes = root, FileBytes(root)
        fingerprint = {"file": file_fingerprint(root), "suffixes": sorted(suffixes), "hidden": RULE}
        index = cached_arrays("zip", fingerprint, lambda: self._directory(suffixes))
        self.names, self.places = index["names"], index["places"]

    def read(self, index: int) -> Bytes:
        offset, packed, size, method, checksum = self.places[index].tolist()
        known = self.names[index]
        data = self.bytes.read(offset, HEADER.size + len(known) + EXTRA + packed)
        signature, name, extra = HEADER.unpack_from(data.data)
        if signature != b"PK\3\4":
            raise ValueError(f"no file starts at byte {offset} of the zip")
        begin = HEADER.size + name + extra
        if begin + packed > len(data):
            data = self.bytes.read(offset, begin + packed)
        own, data = data[HEADER.size : HEADER.size + name].tobytes(), data[begin : begin + packed]
        if known.isascii() and b"\\" not in own and own != known:  # other names may have another encoding there
            raise ValueError(f"its name in the zip's directory differs from its local header, {os.fsdecode(own)}")
        if method == DEFLATED:
            # At most the size in the directory: a zip bomb could decompress to gigabytes.
            text = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data.data, size + 1)
            data = np.frombuffer(bytearray(text), dtype=np.uint8)
        if zlib.crc32(data.data) != checksum:
            raise ValueError("its checksum differs from the directory of the zip")
        return data

    def _directory(self, suffixes: Collection[str]) -> Arrays:
        """Read name, offset of the local header, sizes, compression and checksum of every file."""
        try:
            with open_regular(self.root) as stream, zipfile.ZipFile(stream) as archive:
                selected: list[zipfile.ZipInfo] = []
                others: list[zipfile.ZipInfo] = []
                for info in (info for info in archive.infolist() if not is_hidden(info.filename)):
                    (selected if os.path.splitext(info.filename)[1].lower() in suffixes else others).append(info)
                # The directory has no checksums: a damaged name could hide an image or dataset.json. Opening a member
                # compares the name with its local header; for images this happens when they are read.
                for info in others[:MAX_OTHERS]:
                    archive.open(info).close()
            selected.sort(key=lambda info: os.fsencode(info.filename))
            places = [(i.header_offset, i.compress_size, i.file_size, i.compress_type, i.CRC) for i in selected]
            numbers = np.array(places, dtype=np.int64).reshape(-1, 5)
        except (*DAMAGED, OverflowError) as error:
            raise ValueError(f"{self.root} cannot be read as a zip: {error}; copy or write it again") from error
        for info in selected:
            if info.flag_bits & 1 or info.compress_type not in (STORED, DEFLATED):
                raise ValueError(
                    f"{self.root} must hold stored or deflated files, got {info.filename} encrypted or compressed "
                    "otherwise: write it again as a plain zip"
                )
        return {"names": np.array([os.fsencode(i.filename) for i in selected], dtype=np.bytes_), "places": numbers}


def find_text(root: Path, name: str) -> tuple[str, bytes] | None:
    """Find a file of a zip or folder, with any suffix: at its top, or in a single folder directly below it.

    Args:
        root: the zip or folder.
        name: name of the file.

    Returns:
        The path of the folder relative to `root`, empty or ending with a slash, and the content of the file; None if
        there is no such file.

    Raises:
        ValueError: several folders have one, or only deeper ones, or the file is damaged or larger than `MAX_TEXT`.
    """
    text = b""
    try:
        if root.is_dir():
            paths = [name] if is_present(root / name) else _one_folder_down(root, name)
            if (chosen := _choose(paths)) is not None:
                with open_regular(root / chosen) as stream:
                    text = stream.read(MAX_TEXT + 1)
        else:
            with open_regular(root) as file, zipfile.ZipFile(file) as archive:
                names = archive.NameToInfo
                paths = [path for path in names if path.rpartition("/")[2] == name and not is_hidden(path)]
                if (chosen := _choose(paths)) is not None:
                    with archive.open(chosen) as stream:
                        text = stream.read(MAX_TEXT + 1)
    except DAMAGED as error:
        raise ValueError(f"{root}/{name} cannot be read: {error}; copy or write it again") from error
    if paths and chosen is None:
        raise ValueError(
            f"{name} must lie at the top of {root} or in a single folder there, got {' and '.join(sorted(paths)[:2])}: "
            "move it, or set root to its folder"
        )
    if len(text) > MAX_TEXT:
        raise ValueError(f"{name} must have at most {MAX_TEXT} bytes, got more in {root}: write it again")
    return None if chosen is None else (chosen[: -len(name)], text)


def _one_folder_down(root: Path, name: str) -> list[str]:
    """Return the paths of the files of this name in the folders directly below a folder."""
    with os.scandir(root) as entries:  # which tells folders from files without reading each
        folders = sorted(entry.name for entry in entries if entry.is_dir() and not is_hidden(entry.name))
    return [f"{folder}/{name}" for folder in folders if is_present(root / folder / name)]


def _choose(paths: Sequence[str]) -> str | None:
    """Return the path at the top, else the only one if it is one folder down, else None."""
    top = [path for path in paths if "/" not in path]
    candidates = top or [path for path in paths if path.count("/") == 1]
    return candidates[0] if len(candidates) == 1 else None


def open_members(root: Path, suffixes: Collection[str], argument: str) -> Members:
    """Open the files of a zip or folder with these suffixes; `argument` is the argument to name in errors."""
    if root.is_dir():
        return FolderMembers(root, suffixes)
    if not root.exists():
        raise FileNotFoundError(f"{argument} must be a zip or a folder, got {root}: no such file; check the path")
    check_regular(root, argument)
    return ZipMembers(root, suffixes)
