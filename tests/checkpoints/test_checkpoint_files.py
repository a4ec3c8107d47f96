"""Checkpoint files are written atomically, optionally in the background, and damaged ones are detected."""

import fcntl
import os
import random
import socket
import threading
import warnings
from pathlib import Path

import pytest
import torch
from pretend_gpu.pretended_cuda import pretended_cuda

from asyncdiff.checkpoints import find_damage, lightning_io
from asyncdiff.checkpoints.atomic_files import open_atomic, remove_stale, write_atomically
from asyncdiff.checkpoints.latest import list_checkpoints, newest_intact_checkpoint
from asyncdiff.checkpoints.lightning_io import AtomicCheckpointIO


def state(value: float = 1.0, step: int = 3) -> dict:
    weights = torch.linspace(0, value, 999, dtype=torch.float64)
    return {"state_dict": {"weight": weights}, "pytorch-lightning_version": "2.6.0", "global_step": step}


@pytest.fixture(params=["in order", "reversed", "equal"])
def run(tmp_path, request):
    """A run with three checkpoints and a link to the newest, whose modification times are in any order."""
    folder = tmp_path / "checkpoints"
    for step in (10, 20, 30):
        AtomicCheckpointIO().save_checkpoint(state(step, step), file := folder / f"step={step}.ckpt")
        time = 1e9 + {"in order": step, "reversed": -step, "equal": 0}[request.param]
        os.utime(file, (time, time))
    (folder / "last.ckpt").symlink_to("step=30.ckpt")
    return tmp_path


def test_a_failed_write_leaves_the_earlier_file_and_no_other(tmp_path):
    file = tmp_path / "held"
    write_atomically(file, [b"old"])
    with pytest.raises(TypeError, match="bytes-like"), open_atomic(file) as stream:
        stream.writelines([b"new", "no bytes"])
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]
    with open_atomic(file) as stream:
        stream.write(b"new")
        assert file.read_bytes() == b"old"
    assert file.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [file]


def test_a_checkpoint_loads_as_it_was_saved(tmp_path):
    file = tmp_path / "new" / "folder" / "last.ckpt"
    io = AtomicCheckpointIO()
    io.save_checkpoint(state(), file)
    read = io.load_checkpoint(file)
    assert torch.equal(read["state_dict"]["weight"], state()["state_dict"]["weight"])
    assert find_damage(file) is None
    # A link is replaced, not followed: the file that it names belongs to another step.
    link = file.with_name("link.ckpt")
    link.symlink_to(file.name)
    io.save_checkpoint(state(2.0), link)
    assert not link.is_symlink()
    assert io.load_checkpoint(file)["state_dict"]["weight"][-1] == 1


def test_a_flipped_bit_is_detected(tmp_path):
    file = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(state(), file)
    whole, moments = file.read_bytes(), random.Random(0)
    first = whole.index(torch.linspace(0, 1, 999, dtype=torch.float64)[1:5].numpy().tobytes())
    for _ in range(50):
        at = first + moments.randrange(999 * 8 - 100)
        file.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << moments.randrange(8))]) + whole[at + 1 :])
        torch.load(file, weights_only=True)  # PyTorch itself does not notice
        with pytest.raises(ValueError, match=r"last.ckpt, its record .* is damaged: use an earlier checkpoint"):
            AtomicCheckpointIO().load_checkpoint(file)


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused(tmp_path, share):
    file = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(state(), file)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    assert find_damage(file) in ("it is empty", "it is truncated or overwritten")
    file.write_bytes(bytes(len(whole)))
    assert find_damage(file) == "it is truncated or overwritten"


def test_a_run_resumes_from_the_intact_checkpoint_with_the_highest_step(run):
    folder = run / "checkpoints"
    assert newest_intact_checkpoint(run).name == "last.ckpt"
    assert [file.stem for file in list_checkpoints(run)] == ["last", "step=30", "step=20", "step=10"]
    newest = folder / "step=30.ckpt"
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=r"is skipped: it is truncated .* resumes from .*step=20.ckpt$"):
        assert newest_intact_checkpoint(run).name == "step=20.ckpt"
    (folder / "step=20.ckpt").write_bytes(b"")
    with pytest.warns(UserWarning, match="is skipped: it is empty"):
        assert newest_intact_checkpoint(run).name == "step=10.ckpt"
    (folder / "step=10.ckpt").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"has no intact checkpoint, .*: restore one from a backup, or start the run"):
        newest_intact_checkpoint(run)


def test_the_step_in_the_file_counts_not_its_name(run):
    """A job that SLURM interrupted saves into the run directory; Lightning may save to last-v1.ckpt."""
    AtomicCheckpointIO().save_checkpoint(state(step=31), run / "hpc_ckpt_1.ckpt")
    AtomicCheckpointIO().save_checkpoint(state(step=32), run / "checkpoints" / "last-v1.ckpt")
    os.utime(run / "checkpoints" / "last-v1.ckpt", (0, 0))
    assert [file.stem for file in list_checkpoints(run)][:3] == ["last-v1", "hpc_ckpt_1", "last"]


def test_a_step_is_read_without_the_tensors(run, monkeypatch):
    """Damage to a tensor leaves the step readable, so that the file is in its place and reported."""
    newest = run / "checkpoints" / "step=30.ckpt"
    damaged = bytearray(newest.read_bytes())
    damaged[damaged.index(torch.linspace(0, 30, 999, dtype=torch.float64)[5:9].numpy().tobytes())] ^= 1
    newest.write_bytes(damaged)
    assert [file.stem for file in list_checkpoints(run)] == ["last", "step=30", "step=20", "step=10"]
    with pytest.warns(UserWarning, match=r"last.ckpt is skipped: its record .* resumes from .*step=20.ckpt$"):
        newest_intact_checkpoint(run)


def test_a_file_whose_step_is_damaged_never_wins_and_is_always_reported(run):
    """Otherwise a flipped bit could turn the newest file into an old one that nobody misses, or an old one into it."""
    old = run / "checkpoints" / "step=10.ckpt"
    content = old.read_bytes()
    place = content.index(b"global_step")
    for offset in range(len(b"global_step"), len(b"global_step") + 6):
        damaged = bytearray(content)
        damaged[place + offset] ^= 64
        old.write_bytes(damaged)
        assert list_checkpoints(run)[-1] == old
        with pytest.warns(UserWarning, match=r"step=10.ckpt is skipped: its record .* resumes from .*last.ckpt$"):
            assert newest_intact_checkpoint(run).name == "last.ckpt"
    torch.save({"state_dict": {}}, old)
    with pytest.warns(UserWarning, match=r"step=10.ckpt is skipped: it records no step: the run resumes from"):
        newest_intact_checkpoint(run)


def test_a_dangling_link_is_not_a_checkpoint(run):
    (run / "checkpoints" / "step=30.ckpt").unlink()
    assert newest_intact_checkpoint(run).name == "step=20.ckpt"
    assert newest_intact_checkpoint(run / "elsewhere") is None


def test_hidden_files_are_no_checkpoints(run):
    """macOS adds such a file next to every file that it copies to other file systems."""
    before = list_checkpoints(run)
    (run / "checkpoints" / "._last.ckpt").write_bytes(b"AppleDouble")
    with warnings.catch_warnings(action="error"):
        assert list_checkpoints(run) == before
        newest_intact_checkpoint(run)


def test_temporary_files_of_dead_processes_are_removed_and_others_are_kept(tmp_path):
    dead = tmp_path / f".last.ckpt.{socket.gethostname()}.4194305.tmp"  # above every process number of Linux
    living = tmp_path / f".last.ckpt.{socket.gethostname()}.{os.getppid()}.tmp"
    far = tmp_path / ".last.ckpt.elsewhere.4194305.tmp"
    for file in (dead, living, far):
        file.touch()
    AtomicCheckpointIO().save_checkpoint(state(), tmp_path / "last.ckpt")
    assert sorted(tmp_path.iterdir()) == sorted([living, far, tmp_path / "last.ckpt"])


def test_a_temporary_file_is_removed_as_soon_as_nobody_writes_it(tmp_path):
    """The number of a dead process may belong to another one by now, so the lock on the file decides."""
    left = tmp_path / f".card.json.{socket.gethostname()}.{os.getpid()}.0123abcd.tmp"
    far = tmp_path / f".card.json.elsewhere.{os.getpid()}.0123abcd.tmp"
    for file in (left, far):
        file.touch()
    with open_atomic(tmp_path / "card.json") as stream:
        assert not left.exists()
        stream.write(b"outer")
        write_atomically(tmp_path / "card.json", [b"inner"])  # as another process might
        remove_stale(tmp_path)
    assert (tmp_path / "card.json").read_bytes() == b"outer"
    assert {*tmp_path.iterdir()} == {tmp_path / "card.json", far}


def test_stale_files_are_locked_while_they_are_removed(tmp_path, monkeypatch):
    """Otherwise a process that has just created one may lock it in between, and write into a file that is gone."""
    left, removed = tmp_path / f".a.{socket.gethostname()}.{os.getpid()}.0123abcd.tmp", []
    left.touch()

    def unlink(file, missing_ok):
        with file.open("r+b") as stream, pytest.raises(BlockingIOError):
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        removed.append(file)

    monkeypatch.setattr(Path, "unlink", unlink)
    remove_stale(tmp_path)
    assert removed == [left]


def test_a_file_that_is_removed_before_it_is_locked_is_created_again(tmp_path, monkeypatch):
    """Another process may clean up between the two."""
    flock, removed = fcntl.flock, []

    def remove_first(stream, operation):
        if not removed:
            removed.extend(tmp_path.iterdir())
            removed[0].unlink()
        flock(stream, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    write_atomically(tmp_path / "card.json", [b"content"])
    assert len(removed) == 1
    assert (tmp_path / "card.json").read_bytes() == b"content"


# In the background


def test_the_state_at_the_time_of_the_call_is_written_in_the_background(tmp_path, monkeypatch):
    go, write = threading.Event(), lightning_io._write
    monkeypatch.setattr(lightning_io, "_write", lambda *args: go.wait(10) and write(*args))
    io, held_state = AtomicCheckpointIO(asynchronous=True), state()
    io.save_checkpoint(held_state, tmp_path / "a.ckpt")
    held_state["state_dict"]["weight"].zero_()  # training continues
    io.save_checkpoint(state(2.0), tmp_path / "b.ckpt")
    io.remove_checkpoint(tmp_path / "a.ckpt")
    io.save_checkpoint(state(3.0), tmp_path / "c.ckpt")
    assert not list(tmp_path.iterdir())
    go.set()
    # Loading waits for pending writes.
    assert io.load_checkpoint(tmp_path / "c.ckpt")["state_dict"]["weight"][-1] == 3
    assert sorted(file.name for file in tmp_path.iterdir()) == ["b.ckpt", "c.ckpt"]
    io.teardown()
    AtomicCheckpointIO().save_checkpoint(state(3.0), tmp_path / "d.ckpt")
    assert (tmp_path / "c.ckpt").stat().st_size == (tmp_path / "d.ckpt").stat().st_size


def test_a_gpu_copies_its_state_without_anything_waiting(tmp_path):
    with pretended_cuda() as watch:
        io, held_state = AtomicCheckpointIO(asynchronous=True), state()
        weight = held_state["state_dict"]["weight"] = held_state["state_dict"]["weight"].cuda()
        watch.clear()
        io.save_checkpoint(held_state, tmp_path / "a.ckpt")
        weight.zero_()
        assert watch.waits == []
        io.teardown()
        assert not watch.mixed
    saved = io.load_checkpoint(tmp_path / "a.ckpt")["state_dict"]["weight"]
    assert torch.equal(saved, state()["state_dict"]["weight"])


def test_a_failure_in_the_background_is_raised(tmp_path):
    (tmp_path / "taken.ckpt").mkdir()
    io = AtomicCheckpointIO(asynchronous=True)
    io.save_checkpoint(state(), tmp_path / "taken.ckpt")
    with pytest.raises(OSError, match=r"cannot write .*taken.ckpt: Is a directory: free disk space or choose"):
        io.teardown()
    io.save_checkpoint(state(), tmp_path / "taken.ckpt")
    while not all(future.done() for future in io._writing):
        pass
    with pytest.raises(OSError, match="taken"):
        io.save_checkpoint(state(), tmp_path / "b.ckpt")
