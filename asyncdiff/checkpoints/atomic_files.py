"""Atomic writes: a file is either complete or absent, never partial."""

import contextlib
import os
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def open_atomic(file: Path) -> Iterator[BinaryIO]:
    """Open a stream to a temporary file that replaces `file` once the block ends without an error.

    The temporary file is flushed to disk first. Until it replaces `file`, an existing file stays intact, even if the
    process is killed, the disk fills up or the machine crashes.
    """
    temporary = file.with_name(f".{file.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise OSError(
            f"cannot write {file}: {error.strerror or error}: free disk space or choose another folder, then run the "
            "command again; completed files are kept"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(file: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write the concatenated `parts` to a file atomically; they are on disk when this returns."""
    with open_atomic(file) as stream:
        for part in parts:
            stream.write(part)


def remove_stale(folder: Path) -> None:
    """Remove temporary files left by dead processes on this machine; those of other machines may be in use."""
    for file in folder.glob(".*.tmp"):
        host, _, process = file.name.removesuffix(".tmp").rpartition(".")
        if host.endswith(f".{socket.gethostname()}") and process.isdigit() and not _is_alive(int(process)):
            with contextlib.suppress(FileNotFoundError):  # another process may have removed it
                file.unlink()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
