"""One process writes into a run directory at a time; a kill frees its lock, on this machine and on others."""

import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from asyncdiff.checkpoints import run_lock
from asyncdiff.checkpoints.run_lock import InUseError, hold
from asyncdiff.cli.train import hold_run

REFUSED = r"^{} is being trained by process {} on {} since [0-9: +-]+: wait for it, stop it, or choose another folder$"


def refusal(folder, number):
    return REFUSED.format(folder, number, socket.gethostname())


def fork(work):
    """Run `work(ready)` in a child process and return its number once the child has called `ready()`."""
    reader, writer = os.pipe()
    if child := os.fork():
        os.close(writer)
        assert os.read(reader, 1) == b"r"
        os.close(reader)
        return child
    try:
        work(lambda: os.write(writer, b"r"))
    finally:
        os._exit(1)


def hold_forever(folder):
    def work(ready):
        with hold(folder, "being trained"):
            ready()
            signal.pause()

    return work


def kill(child):
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def kill_orphan(number):
    """Kill a process that is not a child of this one, and wait until it has closed its files."""
    with suppress(OSError):
        os.kill(number, signal.SIGKILL)
        while Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
            time.sleep(0.001)


@pytest.fixture
def quick(monkeypatch):
    """Waits that take no time: `quick` lists what happened instead, and what is to happen in the meantime."""
    meantime, slept = [], []

    class Clock:
        @staticmethod
        def monotonic():
            return sum(slept)

        @staticmethod
        def sleep(seconds):
            slept.append(seconds)
            for action in meantime:
                action()

    monkeypatch.setattr(run_lock, "time", Clock)
    return meantime, slept


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path):
    run = tmp_path / "run"
    for _ in range(3):
        child = fork(hold_forever(run))
        with pytest.raises(InUseError, match=refusal(run, child)), hold(run, "being trained"):
            pass
        kill(child)
    assert (run / ".lock").is_file()
    with hold(run, "being trained"), hold(run, "being evaluated", lock=run / ".other"):  # at once
        pass
    assert list(run.iterdir()) == []


def test_one_process_may_hold_a_folder_again_and_again(tmp_path):
    folder = tmp_path / "new" / "run"
    for _ in range(2):
        with hold(folder, "x"), pytest.raises(InUseError, match=f" is x by process {os.getpid()} "), hold(folder, "x"):
            pass
        assert list(tmp_path.iterdir()) == []
    with hold(folder, "being trained"):
        (folder / "result").touch()
    assert list(folder.iterdir()) == [folder / "result"]


def test_children_of_a_killed_process_are_waited_for(tmp_path, quick, capsys):
    """Loader workers notice seconds later that their process is gone; other ranks may still save a checkpoint."""
    reader, writer = os.pipe()

    def work(ready):
        with hold(tmp_path, "being trained"):
            if not (orphan := os.fork()):
                signal.pause()
            os.write(writer, str(orphan).encode())
            ready()
            signal.pause()

    child = fork(work)
    orphan = int(os.read(reader, 20))
    kill(child)
    meantime, slept = quick
    with (
        pytest.raises(InUseError, match=f"is being trained by a child of process {child} on"),
        hold(tmp_path, "being trained"),
    ):
        pass
    assert sum(slept) == pytest.approx(run_lock.PATIENCE, abs=0.2)
    meantime.append(lambda: kill_orphan(orphan))
    with hold(tmp_path, "being trained"):
        pass
    assert capsys.readouterr().err.count(f"waiting for the child processes of process {child} on ") == 2


def test_a_process_may_wait_for_the_lock(tmp_path, quick):
    child = fork(hold_forever(tmp_path))
    quick[0].append(lambda: len(quick[1]) == 3 and kill(child))
    with hold(tmp_path, "being summarized", wait=True):
        assert len(quick[1]) == 3


def leave(folder, **changes):
    """Leave the record of a process that was killed, with some changes."""
    kill(fork(hold_forever(folder)))
    file = folder / ".lock"
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | changes | {"process": changes.get("process", record["process"])}))
    return file, record


def far(record):
    return ["another kernel", *record["process"][1:]]


def test_a_process_on_another_machine_is_watched_where_locks_do_not_reach_it(tmp_path, quick, capsys):
    meantime, slept = quick
    file, record = leave(tmp_path)
    record |= {"process": far(record), "host": "b", "since": "2026-01-01 00:00:00+00:00"}
    file.write_text(json.dumps(record))

    def beat():
        record["beat"] += 1
        file.write_text(json.dumps(record))

    meantime.append(beat)
    refused = r"being trained by process \d+ on b since 2026-01-01"
    with pytest.raises(InUseError, match=refused), hold(tmp_path, "being trained"):
        pass
    meantime.clear()
    slept.clear()
    with hold(tmp_path, "being trained"):  # its record stays the same: it is dead
        assert json.loads(file.read_text())["host"] == socket.gethostname()
    assert sum(slept) >= run_lock.PATIENCE
    assert capsys.readouterr().err.count("which may still run") == 2


def test_one_of_two_machines_takes_over(tmp_path, quick):
    """Both have waited for the same dead process; the later record wins."""
    meantime, slept = quick
    file, record = leave(tmp_path)
    file.write_text(json.dumps(record | {"process": far(record)}))
    other = record | {"host": "c", "token": "of c"}
    meantime.append(lambda: sum(slept) > run_lock.PATIENCE and file.write_text(json.dumps(other)))
    with pytest.raises(InUseError, match="on c since"), hold(tmp_path, "being trained"):
        pass


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[]", b"\0\xff", b'{"process": [1], "inode": 2}', b"[" * 4000])
def test_copies_of_a_lock_and_other_content_are_no_lock(tmp_path, quick, content):
    (original := tmp_path / "original").mkdir()
    file, record = leave(original)
    file.write_text(json.dumps(record | {"process": far(record)}))
    copied = shutil.copytree(original, tmp_path / "copied")
    if content is not None:
        (copied / ".lock").write_bytes(content)
    with hold(copied, "being trained"):
        pass
    assert quick[1] == []


def test_a_copy_made_of_hard_links_has_a_lock_of_its_own(tmp_path):
    (copied := tmp_path / "copied").mkdir()
    with hold(tmp_path, "being trained"):
        (copied / ".lock").hardlink_to(tmp_path / ".lock")
        with hold(copied, "being trained"), pytest.raises(InUseError), hold(tmp_path, "being trained"):
            pass
    assert [*tmp_path.iterdir()] == [copied]


def test_a_system_without_proc_watches_the_record_where_there_are_no_locks(tmp_path, monkeypatch, quick, capsys):
    """A process number alone does not tell whether its process is dead."""
    file, record = leave(tmp_path)

    def refuse(*_):
        raise OSError(errno.ENOTSUP, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    here = run_lock._process(os.getpid())
    monkeypatch.setattr(run_lock, "_process", lambda number: here._replace(number=number, space=0, start=""))
    kernel, _, number, _ = record["process"]
    file.write_text(json.dumps(record | {"process": [kernel, 0, number, ""]}))
    with hold(tmp_path, "being trained"):
        assert "which may still run" in capsys.readouterr().err


def test_the_record_is_changed_again_when_its_server_was_away(tmp_path, monkeypatch):
    read, failed = run_lock._read, threading.Event()

    def fail_once(descriptor):
        if threading.current_thread() is threading.main_thread() or failed.is_set():
            return read(descriptor)
        failed.set()
        raise OSError(errno.ESTALE, "stale")

    write, written = run_lock._write, threading.Event()

    def note(descriptor, record):
        write(descriptor, record)
        if failed.is_set():
            written.set()

    monkeypatch.setattr(run_lock, "BEAT", 0.01)
    monkeypatch.setattr(run_lock, "_read", fail_once)
    monkeypatch.setattr(run_lock, "_write", note)
    with hold(tmp_path, "being trained"):
        assert written.wait(30)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP])
def test_file_systems_without_locks(tmp_path, monkeypatch, quick, code):
    def refuse(*_):
        raise OSError(code, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    child = fork(hold_forever(tmp_path))
    with pytest.raises(InUseError, match=refusal(tmp_path, child)), hold(tmp_path, "being trained"):
        pass
    kill(child)
    with hold(tmp_path, "being trained"):
        pass
    # Its number has been given to another process since.
    file, record = leave(tmp_path)
    kernel, space, _, start = record["process"]
    file.write_text(json.dumps(record | {"process": [kernel, space, os.getpid(), start + "1"]}))
    with hold(tmp_path, "being trained"):
        pass
    assert quick[1] == []


def test_a_process_whose_lock_was_taken_over_ends(tmp_path, monkeypatch):
    """It stood still for so long that it counted as dead, and must not write any more."""
    monkeypatch.setattr(run_lock, "BEAT", 0.01)
    child = fork(hold_forever(tmp_path))
    file = tmp_path / ".lock"
    while True:
        try:
            record = json.loads(file.read_text())
        except ValueError:  # being written
            continue
        file.write_text(json.dumps(record | {"token": "another"}))
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
    assert os.waitstatus_to_exitcode(status) == 2


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with (
            pytest.raises(OSError, match=f"^cannot write into {folder}: .*: choose another folder$"),
            hold(folder, "x"),
        ):
            pass
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / ".lock").symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="cannot write into"), hold(tmp_path / "link", "x"):
        pass
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("variable", ["RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK"])
def test_only_the_first_process_of_a_run_holds_its_lock(tmp_path, monkeypatch, variable):
    monkeypatch.setenv(variable, "0")
    with hold_run(tmp_path):
        with pytest.raises(InUseError), hold_run(tmp_path):
            pass
        monkeypatch.setenv(variable, "1")
        with hold_run(tmp_path):
            assert Path(tmp_path / ".lock").is_file()
    assert not (tmp_path / ".lock").exists()
