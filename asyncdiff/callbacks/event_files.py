"""TensorBoard event files of a resumed run."""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

EVENTS = "events.out.tfevents.*"


def remove_events_after(folder: Path, moment: float) -> int:
    """Remove the events that earlier processes wrote after a moment.

    A resumed run repeats the steps after its checkpoint: without this, curves would have these steps twice. Files of
    this process are left alone. A file with no events left is deleted.

    Args:
        folder: folder of the logger.
        moment: seconds since the epoch, by the clock of the machine that wrote the events.

    Returns:
        The number of removed events.
    """
    removed = 0
    for file in sorted(folder.glob(EVENTS)):
        own = f".{socket.gethostname()}.{os.getpid()}." in file.name
        # A file last modified before the moment has no later events; file systems round times, hence the margin.
        if own or file.stat().st_mtime < moment - 2:
            continue
        later = sum(_is_later(moment, written, opening) for _, written, opening in _records(file))
        if later:
            _rewrite(file, moment)
        removed += later
    return removed


def _is_later(moment: float, written: float, opening: bool) -> bool:
    """Return whether a record was written after a moment and is not the header of its file."""
    return written > moment and not opening


def _records(file: Path) -> Iterator[tuple[bytes, float, bool]]:
    """Yield every complete record, the time when it was written, and whether it is the header of the file."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader  # slow import: a second
    from tensorboard.compat.proto.event_pb2 import Event

    for record in RawEventFileLoader(str(file)).Load():
        event = Event.FromString(record)
        yield record, event.wall_time, event.WhichOneof("what") == "file_version"


def _rewrite(file: Path, moment: float) -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    from asyncdiff.checkpoints.atomic_files import open_atomic

    keeps_events = False
    with open_atomic(file) as stream:
        write: Callable[[bytes], None] = RecordWriter(stream).write
        for record, written, opening in _records(file):  # read again, so that images need not fit into memory
            if not _is_later(moment, written, opening):
                keeps_events = keeps_events or not opening
                write(record)
    if not keeps_events:
        file.unlink()
