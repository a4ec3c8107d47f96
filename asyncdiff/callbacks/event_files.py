"""TensorBoard's event files of a run that goes on from a checkpoint."""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

EVENTS = "events.out.tfevents.*"


def remove_events_after(folder: Path, moment: float) -> int:
    """Remove the events that processes now dead have written after a moment, and say how many there were.

    A run that goes on from a checkpoint computes again what came after it: without this, curves would have steps twice.
    Files that this process has begun itself are left alone. A file without any other events is removed.

    Args:
        folder: the logger's.
        moment: seconds since the epoch, by the clock of the machine that wrote.
    """
    dropped = 0
    for file in sorted(folder.glob(EVENTS)):
        own = f".{socket.gethostname()}.{os.getpid()}." in file.name
        # What has not been touched since has nothing newer in it; clocks of file systems tick more coarsely.
        if own or file.stat().st_mtime < moment - 2:
            continue
        gone = sum(_is_later(moment, written, opening) for _, written, opening in _records(file))
        if gone:
            _rewrite(file, moment)
        dropped += gone
    return dropped


def _is_later(moment: float, written: float, opening: bool) -> bool:
    """Whether a record was written after a moment, and does more than open its file."""
    return written > moment and not opening


def _records(file: Path) -> Iterator[tuple[bytes, float, bool]]:
    """Every record that is whole, when it was written, and whether it only opens the file."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader  # late: it takes a second
    from tensorboard.compat.proto.event_pb2 import Event

    for record in RawEventFileLoader(str(file)).Load():
        event = Event.FromString(record)
        yield record, event.wall_time, event.WhichOneof("what") == "file_version"


def _rewrite(file: Path, moment: float) -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    from asyncdiff.checkpoints.atomic_files import open_atomic

    told = False
    with open_atomic(file) as stream:
        write: Callable[[bytes], None] = RecordWriter(stream).write
        for record, written, opening in _records(file):  # once more, so that pictures need not fit into memory
            if not _is_later(moment, written, opening):
                told = told or not opening
                write(record)
    if not told:
        file.unlink()
