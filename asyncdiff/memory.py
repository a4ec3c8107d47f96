"""Memory that this process may still allocate, and a check of what an argument would need. Imports no torch."""

import os
from pathlib import Path

UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
# Memory that counts as used by a container, although the system gives it up when asked.
RECLAIMABLE = ("active_file", "inactive_file", "slab_reclaimable")
# Folder, limit and use of the memory of a container, for the two versions of Linux's control groups.
CONTAINERS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
)


def available_memory() -> int:
    """Return how many bytes can be allocated without swapping: those of the machine, or of the container if fewer.

    Where the system does not say (outside Linux), the physical memory.
    """
    free = _available_on_linux()
    if free is None:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for folder, limit, used in CONTAINERS:
        try:
            left = int((folder / limit).read_text()) - int((folder / used).read_text())
            free = min(free, max(0, left + _cached(folder)))
        except (OSError, ValueError):  # no such control group, or "max"
            continue
    return free


def check_memory(name: str, value: object, needed: int, remedy: str, *, available: int | None = None) -> None:
    """Raise ValueError if an argument needs more memory than there is.

    Args:
        name: name of the argument.
        value: its value, for the message.
        needed: bytes that it needs; an underestimate refuses nothing that would have worked.
        remedy: what to do, with the largest value that fits.
        available: bytes that there are; by default, `available_memory`.
    """
    available = available_memory() if available is None else available
    if needed > available:
        raise ValueError(
            f"{name} must fit into memory, got {value}, which needs {format_bytes(needed)} of the "
            f"{format_bytes(available)} available: {remedy}"
        )


def format_bytes(count: int) -> str:
    """Format a number of bytes with two or three significant digits, such as 1.4 GiB."""
    size, unit = float(count), 0
    while size >= 1000 and unit < len(UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.3g} {UNITS[unit]}"


def _available_on_linux() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None


def _cached(folder: Path) -> int:
    """Return the bytes of cached files and the like."""
    fields = [line.split() for line in (folder / "memory.stat").read_text().splitlines()]
    return sum(int(count) for name, count in fields if name in RECLAIMABLE)
