"""What is found out about a large dataset once, kept as arrays on disk and mapped into the memory of every process.

Nothing is ever written to the working directory or beside the data. The cache lies in `$ASYNCDIFF_CACHE`, or else in
`$XDG_CACHE_HOME/asyncdiff`, or else in `~/.cache/asyncdiff`, and may be deleted at any time.
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

EDGE = 1 << 20  # bytes at either end of a file that its stamp looks at


def cache_folder() -> Path:
    """Where indices are kept."""
    if chosen := os.environ.get("ASYNCDIFF_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "asyncdiff"


def file_fingerprint(file: Path) -> dict[str, Any]:
    """What tells a file from another one, and from itself before a change: place, size, time, and a hash of both ends.

    Hashing all of a file of 100 GB would take minutes; the ends hold the headers of archives and of databases.
    """
    status = file.stat()
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        digest.update(stream.read(EDGE))
        stream.seek(max(0, status.st_size - EDGE))
        digest.update(stream.read(EDGE))
    place = os.path.realpath(file)
    return {"file": place, "size": status.st_size, "time": status.st_mtime_ns, "ends": digest.hexdigest()}


def cached_arrays(
    kind: str,
    identity: Any,
    build: Callable[[], Mapping[str, npt.NDArray[Any]]],
    *,
    holds: Callable[[Arrays], bool] = lambda arrays: True,
) -> Arrays:
    """The arrays of `build()`, taken from the cache where it was called for the same `identity` before.

    Several processes may build at a time; one of them is kept, and none ever sees half of an entry. Where nothing can
    be written, a warning says so and the arrays are those in memory.

    Args:
        kind: what is indexed, in small letters: the beginning of the entry's name.
        identity: plain containers that tell the data, such as `file_fingerprint` of its files; part of the entry's name as a hash.
        build: makes the arrays; none may hold objects.
        holds: whether the kept arrays are still true, where the identity alone does not tell; otherwise they are
            built again and replaced.
    """
    text = json.dumps(identity, sort_keys=True)
    entry = cache_folder() / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:24]}"
    found = _mapped(entry)
    if found is not None and holds(found):
        return found
    arrays = {name: np.ascontiguousarray(array) for name, array in build().items()}
    try:
        _keep(entry, arrays, text, replace=found is not None)
    except OSError as error:
        warnings.warn(
            f"cannot keep the index {entry}: {error}; it will be built again every time: set ASYNCDIFF_CACHE to a "
            "folder that can be written to",
            stacklevel=2,
        )
        return arrays
    found = _mapped(entry)
    return arrays if found is None else found


def _mapped(entry: Path) -> Arrays | None:
    """The arrays of an entry; None if there is none, or one that cannot be read or is not what was written."""
    try:
        sums = json.loads((entry / "index.json").read_text())["sums"]
        if any(_sum(_file(entry, name)) != told for name, told in sums.items()):
            return None
        return {name: np.load(_file(entry, name), mmap_mode="r", allow_pickle=False) for name in sums}
    except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError):
        return None


def _file(entry: Path, name: str) -> Path:
    """The file of an array; ValueError for a name that leads elsewhere."""
    if not name.isidentifier():
        raise ValueError(f"arrays must have plain names, got {name}: remove {entry}")
    return entry / f"{name}.npy"


def _sum(file: Path) -> int:
    """CRC-32 of all of a file: a gigabyte in a second, and indices of millions of images are a tenth of that."""
    found = 0
    with file.open("rb") as stream:
        while chunk := stream.read(EDGE):
            found = zlib.crc32(chunk, found)
    return found


def _keep(entry: Path, arrays: Arrays, identity: str, *, replace: bool) -> None:
    """Write an entry as a whole: a folder that gets its name when all is in it.

    What is replaced may be mapped by other processes: its bytes stay theirs until they end.
    """
    entry.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{entry.name}-", dir=entry.parent))
    try:
        for name, array in arrays.items():
            np.save(new / f"{name}.npy", array, allow_pickle=False)
        sums = {name: _sum(_file(new, name)) for name in arrays}
        (new / "index.json").write_text(json.dumps({"sums": sums, "of": json.loads(identity)}, indent=1))
        if entry.exists() and (replace or _mapped(entry) is None):
            shutil.rmtree(entry, ignore_errors=True)
        new.rename(entry)
    except OSError:
        if _mapped(entry) is None:  # else another process was faster, which is as good
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)


class MemmapPath(NamedTuple):
    """An array that lies in a file as a whole."""

    file: str


def memmaps_to_paths(state: Mapping[str, Any]) -> dict[str, Any]:
    """An object's attributes for a worker that is spawned: names of files in place of the arrays mapped from them."""
    return {name: MemmapPath(str(value.filename)) if _whole(value) else value for name, value in state.items()}


def paths_to_memmaps(state: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes again, the arrays mapped anew."""
    return {
        name: np.load(value.file, mmap_mode="r", allow_pickle=False) if isinstance(value, MemmapPath) else value
        for name, value in state.items()
    }


def _whole(value: Any) -> bool:
    """Whether this is all of a mapped .npy file, and no view of a part of it."""
    if not isinstance(value, np.memmap) or value.filename is None or isinstance(value.base, np.ndarray):
        return False
    return str(value.filename).endswith(".npy")
