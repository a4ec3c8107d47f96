"""Events after the checkpoint of a resumed run are removed, all others are unchanged."""

import os
import random

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from torch.utils.tensorboard import SummaryWriter

from asyncdiff.callbacks.event_files import remove_events_after


def write_events(folder, steps, suffix=""):
    """Write an event file in which step s has the time 1000 + s, as if by another process."""
    writer = SummaryWriter(folder, filename_suffix=suffix)
    for step in steps:
        writer.add_scalar("loss", step / 7, step, walltime=1000 + step)
    writer.close()
    (file,) = folder.glob(f"*.{os.getpid()}.*{suffix}")
    return file.rename(file.with_name(file.name.replace(f".{os.getpid()}.", ".4194305.")))


def steps(folder):
    files = sorted(folder.glob("events*"))
    events = (event for file in files for event in EventFileLoader(str(file)).Load())
    return [event.step for event in events if event.summary.value]


def test_later_events_are_removed_and_all_others_kept_byte_for_byte(tmp_path):
    file = write_events(tmp_path, range(10), ".a")
    other = write_events(tmp_path, range(10, 20), ".b")
    before = file.read_bytes()
    assert remove_events_after(tmp_path, 1014) == 5
    assert steps(tmp_path) == list(range(15))
    assert file.read_bytes() == before
    assert remove_events_after(tmp_path, 1014) == 0
    assert remove_events_after(tmp_path, 1004) == 10
    assert steps(tmp_path) == list(range(5))
    assert before.startswith(file.read_bytes())
    assert not other.exists()  # no event was left in it
    assert remove_events_after(tmp_path, 0) == 5
    assert not list(tmp_path.iterdir())


def test_a_truncated_file_is_read_up_to_its_last_complete_event(tmp_path):
    file = write_events(tmp_path, range(10))
    whole = file.read_bytes()
    for cut in random.Random(0).sample(range(60, len(whole)), 20):
        file.write_bytes(whole[:cut])
        kept = steps(tmp_path)
        remove_events_after(tmp_path, 1003)
        assert steps(tmp_path) == kept[:4]


def test_files_of_this_process_and_older_files_are_not_changed(tmp_path):
    writer = SummaryWriter(tmp_path)
    writer.add_scalar("loss", 1, 1, walltime=2e9)
    writer.close()
    old = write_events(tmp_path / "old", range(3))
    os.utime(old, (500, 500))
    assert remove_events_after(tmp_path, 0) == 0
    assert remove_events_after(tmp_path / "old", 1001) == 0
    assert steps(tmp_path) == [1]
    assert steps(tmp_path / "old") == [0, 1, 2]
