"""Files that are put in their place as a whole: whoever finds one finds all of it."""

import contextlib
import os
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def written_whole(file: Path) -> Iterator[BinaryIO]:
    """A stream whose contents take the place of `file` when the block has ended well, on the disk by then.

    Whatever happens before, `file` is as it was.
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
            f"cannot write {file}: {error.strerror or error}: make room, or choose another folder, and run the command "
            "again; what is complete is kept"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def replace(file: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Put a file in its place as a whole, on the disk when this returns, whatever happens meanwhile."""
    with written_whole(file) as stream:
        for part in parts:
            stream.write(part)


def remove_stale(folder: Path) -> None:
    """Remove what processes of this machine left unfinished that are no more; others may be at work."""
    for file in folder.glob(".*.tmp"):
        host, _, process = file.name.removesuffix(".tmp").rpartition(".")
        if host.endswith(f".{socket.gethostname()}") and process.isdigit() and not _alive(int(process)):
            with contextlib.suppress(FileNotFoundError):  # another process may be tidying, too
                file.unlink()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
