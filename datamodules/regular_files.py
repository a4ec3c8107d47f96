"""Open files of a user only if they are regular: a named pipe would block forever, a device may never end."""

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: str | Path, name: str = "path", *, buffering: int = -1) -> BufferedReader:
    """Open a regular file for reading bytes; links are followed.

    The opened file itself is checked, so that it does not matter what is put in its place in the meantime.

    Args:
        path: path of the file.
        name: argument to name in the error.
        buffering: as for `open`.

    Returns:
        The open file.

    Raises:
        ValueError: it is a folder, a named pipe, a socket or a device.
        OSError: it does not exist or is not readable.
    """
    try:
        stream = open(path, "rb", buffering, opener=_open_without_waiting)  # noqa: SIM115  the caller closes it
    except OSError as error:
        if error.errno in (errno.EISDIR, errno.ENXIO):  # a folder, and a socket or a device without a driver
            check_regular(path, name)
        raise
    try:
        _check_mode(os.fstat(stream.fileno()).st_mode, path, name)
    except ValueError:
        stream.close()
        raise
    return cast(BufferedReader, stream)  # or a FileIO without buffering, which readers use in the same way


def read_regular(path: str | Path, name: str = "path") -> npt.NDArray[np.uint8]:
    """Return the bytes of a regular file, writable as decoders require; the arguments are those of `open_regular`."""
    with open_regular(path, name, buffering=0) as stream:
        data = np.empty(os.fstat(stream.fileno()).st_size, dtype=np.uint8)
        read = more = stream.readinto(data.data) or 0
        while more and read < len(data):  # file systems over networks may return fewer bytes at once
            read += (more := stream.readinto(data[read:].data) or 0)
    return data[:read]


def check_regular(path: str | Path, name: str = "path") -> None:
    """Raise ValueError if a path is not a regular file, OSError if it does not exist; for libraries that open it.

    Args:
        path: path of the file.
        name: argument to name in the error.
    """
    _check_mode(os.stat(path).st_mode, path, name)


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _check_mode(mode: int, path: str | Path, name: str) -> None:
    if not stat.S_ISREG(mode):
        kind = KINDS.get(stat.S_IFMT(mode), "a special file")
        raise ValueError(f"{name} must be a regular file, got {path}, {kind}: check the path")


def is_present(path: str | Path) -> bool:
    """Return whether there is a file, or anything else, at a path where one is optional.

    A link that leads nowhere counts, so that what was meant to be there is not left out in silence.
    """
    return os.path.lexists(path)
