"""Lock of a run directory or another output folder: one process writes into it at a time, and a kill frees it."""

import errno
import fcntl
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

LOCK = ".lock"
BEAT = 5.0  # seconds between two changes of the record by its holder
PATIENCE = 30.0  # seconds without a change after which a holder on another machine counts as dead
# Of flock on file systems without locks.
NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
RECORD_BYTES = 4096
RECORD_KEYS = {"host", "since", "process", "inode", "folder", "token", "beat"}

Record = dict[str, Any]


class InUseError(ValueError):
    """Another process holds the lock; the one-line message names it."""


class Process(NamedTuple):
    """What tells a process from all others.

    Attributes:
        kernel: id of the running kernel, which processes in all containers of a machine share.
        space: id of the namespace of its process number.
        number: process number, which is used again.
        start: when it started, in the kernel's ticks.
    """

    kernel: str
    space: int
    number: int
    start: str


@contextmanager
def hold(folder: Path, what: str, *, lock: Path | None = None, wait: bool = False) -> Iterator[None]:
    """Hold the lock of a folder, which is created if necessary; afterwards, an empty folder that was new is removed.

    The kernel's file lock is freed when its process and its forked children end in any way, and works across machines
    on most network file systems. Where it does not, the file itself is the lock: its holder changes it every few
    seconds, and another machine takes it over only after it has not changed for `PATIENCE`. Clocks are never compared.
    If the lock is taken over from a process that was merely suspended, that process ends as soon as it continues.

    Args:
        folder: folder to hold.
        what: what happens to the folder, such as "being trained", for the message of other processes.
        lock: file of the lock; by default, .lock in the folder. Programs that may share a folder have different ones.
        wait: wait while another process holds the lock, instead of raising InUseError.

    Raises:
        InUseError: another process holds the lock.
        OSError: the folder is not writable.
    """
    lock = lock or folder / LOCK
    missing = [place for place in lock.parents if not place.exists()]
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                descriptor, record = _acquire(lock, folder, what)
                break
            except InUseError:
                if not wait:
                    raise
                time.sleep(BEAT / 10)
    except BaseException as error:
        _remove_empty(missing)
        if isinstance(error, OSError):
            raise OSError(f"cannot write into {folder}: {error.strerror or error}: choose another folder") from error
        raise
    owner, stopping = os.getpid(), threading.Event()
    beating = threading.Thread(target=_beat, args=(descriptor, record, stopping, folder), daemon=True)
    beating.start()
    try:
        yield
    finally:
        if os.getpid() == owner:  # not a forked child that leaves the block as well
            stopping.set()
            beating.join(timeout=BEAT)
            _release(lock, descriptor)
            _remove_empty(missing)


def _acquire(file: Path, folder: Path, what: str) -> tuple[int, Record]:
    """Return the descriptor of the locked file and the record in it."""
    until: float | None = None
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        try:
            works = _flock(descriptor)
            before = _read(descriptor)
            if before is not None and _is_linked(before, file, descriptor):
                file.unlink()
            elif works is False:
                if before is None or _is_alive(before) is not False:
                    raise InUseError(_describe(folder, what, before))
                if until is None:
                    _print(f"waiting for the child processes of {_name(before)}, which has ended")
                    until = time.monotonic() + PATIENCE
                elif time.monotonic() > until:
                    raise InUseError(_describe(folder, what, before, "a child of "))
                time.sleep(0.1)
            elif _is_same_file(file, descriptor):
                _wait_for(before, bool(works), descriptor, folder, what)
                if _is_same_file(file, descriptor):
                    return descriptor, _claim(file, descriptor, before, folder, what)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _flock(descriptor: int) -> bool | None:
    """Return whether the kernel's lock was acquired, or None on a file system without locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return None
    return True


def _wait_for(before: Record | None, locked: bool, descriptor: int, folder: Path, what: str) -> None:
    """Return once the process of a record is certainly dead; raise InUseError if it is alive."""
    if before is None:
        return
    alive = False if locked and before["process"].kernel == _kernel() else _is_alive(before)
    if alive is None:
        _print(f"waiting {PATIENCE:.0f} s, since {folder} was {what} by {_name(before)}, which may still run")
        until = time.monotonic() + PATIENCE
        while alive is None and time.monotonic() < until:
            time.sleep(BEAT / 10)
            if (now := _read(descriptor)) is None:
                return
            alive = True if now != before else None
    if alive:
        raise InUseError(_describe(folder, what, before))


def _claim(file: Path, descriptor: int, before: Record | None, folder: Path, what: str) -> Record:
    """Write this process's record and return it."""
    mine = {
        "host": socket.gethostname(),
        "since": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),  # for people; never compared
        "process": _process(os.getpid()),
        "inode": os.fstat(descriptor).st_ino,
        "folder": os.stat(file.parent).st_ino,
        "token": secrets.token_hex(8),
        "beat": 0,
    }
    os.ftruncate(descriptor, 0)
    _write(descriptor, mine)
    if before is not None and before["process"].kernel != _kernel():
        time.sleep(BEAT / 2)  # another machine may have waited for the same process
        now = _read(descriptor)
        if now is None or now["token"] != mine["token"]:
            raise InUseError(_describe(folder, what, now))
    return mine


def _beat(descriptor: int, record: Record, stopping: threading.Event, folder: Path) -> None:
    """Change the record every few seconds; end the process if another one has taken over its lock."""
    while not stopping.wait(BEAT):
        with suppress(OSError):  # a full disk or a server that is away does not free the lock of the kernel
            now = _read(descriptor)
            if now is not None and now["token"] != record["token"]:
                _print(f"error: {folder} was taken over by {_name(now)} while this process stood still")
                os._exit(2)  # without saving anything: the other process writes there now
            record = {**record, "beat": record["beat"] + 1}
            _write(descriptor, record)


def _release(file: Path, descriptor: int) -> None:
    if _is_same_file(file, descriptor):
        file.unlink(missing_ok=True)
    with suppress(OSError):
        os.ftruncate(descriptor, 0)  # for a process on another machine that has it open
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing would leave it to forked children
    os.close(descriptor)


def _write(descriptor: int, record: Record) -> None:
    os.pwrite(descriptor, json.dumps(record).encode(), 0)
    os.fsync(descriptor)


def _read(descriptor: int) -> Record | None:
    """Return the record in a lock file; None if it has none, or that of a file from which it was copied."""
    try:
        record = json.loads(os.pread(descriptor, RECORD_BYTES, 0))
        record["process"] = Process(*record["process"])
        complete = isinstance(record["process"].number, int) and record.keys() >= RECORD_KEYS
        return record if complete and record["inode"] == os.fstat(descriptor).st_ino else None
    except (ValueError, TypeError, KeyError, RecursionError, AttributeError):
        return None


def _is_alive(record: Record) -> bool | None:
    """Return whether the process of a record is alive; None if that cannot be seen from here."""
    process = record["process"]
    here = _process(os.getpid())
    visible = here.start and (process.kernel, process.space) == here[:2]  # systems without /proc show no start
    return process == _process(process.number) if visible else None


def _process(number: int) -> Process:
    """Return the process with this number, with an empty start if there is none."""
    try:
        # After the name in brackets, which may contain anything: field 3 is the state, field 22 the start.
        fields = Path(f"/proc/{number}/stat").read_text(errors="replace").rpartition(")")[2].split()
        start = "" if fields[0] in "ZX" else fields[19]  # killed, but its parent has not asked for its exit code yet
        space = os.stat("/proc/self/ns/pid").st_ino
    except (OSError, IndexError):
        start, space = "", 0
    return Process(_kernel(), space, number, start)


def _kernel() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _is_same_file(file: Path, descriptor: int) -> bool:
    """Return whether the file still has this name; its last holder may have removed it."""
    try:
        return os.path.samestat(os.stat(file, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _is_linked(record: Record, file: Path, descriptor: int) -> bool:
    """Return whether a lock file is a hard link to that of the run from which a run was copied."""
    elsewhere = record["folder"] != os.stat(file.parent).st_ino and os.fstat(descriptor).st_nlink > 1
    return elsewhere and _is_same_file(file, descriptor)


def _describe(folder: Path, what: str, record: Record | None, whose: str = "") -> str:
    return f"{folder} is {what} by {whose}{_name(record)}: wait for it, stop it, or choose another folder"


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _name(record: Record | None) -> str:
    if record is None:
        return "another process"
    return f"process {record['process'].number} on {record['host']} since {record['since']}"


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
