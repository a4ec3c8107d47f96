"""Atomic writes: a file is either complete or absent, never partial."""

import contextlib
import fcntl
import os
import re
import secrets
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
    _remove_stale(file.parent, re.escape(file.name))
    temporary = file.with_name(f".{file.name}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with _create_locked(temporary) as stream:
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
    _remove_stale(folder, ".*")


def _remove_stale(folder: Path, name: str) -> None:
    """Remove the stale temporary files of files whose names match a regular expression."""
    pattern = re.compile(rf"\.{name}\.{re.escape(socket.gethostname())}\.(\d+)(\.[0-9a-f]+)?\.tmp")
    with contextlib.suppress(OSError):  # a failed cleanup must not fail the write, and another process may clean up
        for entry in os.listdir(folder):
            if match := pattern.fullmatch(entry):
                _remove_if_stale(folder / entry, int(match[1]), locked=bool(match[2]))


def _create_locked(file: Path) -> BinaryIO:
    """Create a file that `_remove_if_stale` leaves; the kernel frees its lock when the process ends."""
    while True:
        stream = file.open("xb")
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(stream, fcntl.LOCK_EX)
        if os.fstat(stream.fileno()).st_nlink:  # else another process has removed it before it was locked
            return stream
        stream.close()


def _remove_if_stale(file: Path, process: int, *, locked: bool) -> None:
    """Remove a file if the process that was writing it is dead; earlier versions did not lock it."""
    if locked:
        try:
            with file.open("r+b") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.unlink(missing_ok=True)  # before another process that has just created it can lock it
            return  # whether or not the process number has been given to another process since
        except BlockingIOError:
            return
        except OSError:  # a file system without locks
            pass
    if not _is_alive(process):
        file.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
