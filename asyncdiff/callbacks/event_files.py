"""Remove TensorBoard events that a resumed run will log again."""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

EVENTS = "events.out.tfevents.*"


def remove_events_after(folder: Path, timestamp: float) -> int:
    """Remove the events that earlier processes wrote after `timestamp`.

    A resumed run repeats the steps after its checkpoint; without this, curves would contain these steps twice. Files
    written by this process are not changed. A file without remaining events is deleted.

    Args:
        folder: folder of the logger.
        timestamp: seconds since the epoch, by the clock of the machine that wrote the events.

    Returns:
        Number of removed events.
    """
    removed = 0
    for file in sorted(folder.glob(EVENTS)):
        own = f".{socket.gethostname()}.{os.getpid()}." in file.name
        # A file last modified before the timestamp has no later events. File systems round times: allow two seconds.
        if own or file.stat().st_mtime < timestamp - 2:
            continue
        later = sum(_is_later(timestamp, written_at, is_header) for _, written_at, is_header in _records(file))
        if later:
            _rewrite(file, timestamp)
        removed += later
    return removed


def _is_later(timestamp: float, written_at: float, is_header: bool) -> bool:
    """Return whether a record is an event, not the header of its file, and was written after `timestamp`."""
    return written_at > timestamp and not is_header


def _records(file: Path) -> Iterator[tuple[bytes, float, bool]]:
    """Yield every complete record with the time at which it was written and whether it is the header of the file."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader  # slow import: a second
    from tensorboard.compat.proto.event_pb2 import Event

    for record in RawEventFileLoader(str(file)).Load():
        event = Event.FromString(record)
        yield record, event.wall_time, event.WhichOneof("what") == "file_version"


def _rewrite(file: Path, timestamp: float) -> None:
    """Rewrite a file without the events after `timestamp`; delete it if none remain."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    from asyncdiff.checkpoints.atomic_files import open_atomic

    keeps_events = False
    with open_atomic(file) as stream:
        write: Callable[[bytes], None] = RecordWriter(stream).write
        for record, written_at, is_header in _records(file):  # read again: images may not all fit into memory
            if not _is_later(timestamp, written_at, is_header):
                keeps_events = keeps_events or not is_header
                write(record)
    if not keeps_events:
        file.unlink()
