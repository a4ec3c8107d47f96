"""A process that is killed at any moment frees its lock at once, and what it was writing is cleaned up."""

import os
import random
import time
from pathlib import Path

import pytest
from faults.killing import fork, kill_tree, wait_for_exit

from asyncdiff.checkpoints import run_lock
from asyncdiff.checkpoints.atomic_files import remove_stale, write_atomically
from asyncdiff.checkpoints.run_lock import InUseError, hold


def keep_writing(run: Path) -> None:
    """Hold a run, with a child process like a loader's worker, and write a file again and again."""
    with hold(run, "being trained"):
        if not (os.fork()):
            time.sleep(60)
            os._exit(0)
        for number in range(10**6):
            write_atomically(run / "file", [str(number).encode() * 1000])


def try_to_hold(run: Path) -> None:
    with hold(run, "being trained"):
        pass


def outcome(run: Path, rng: random.Random) -> str | None:
    """Kill the process at a random moment; return what is wrong with the run afterwards."""
    child = fork(lambda: keep_writing(run), run.with_suffix(".txt"))
    while not (run / "file").exists():
        time.sleep(0.001)
    if wait_for_exit(fork(lambda: try_to_hold(run), run.with_suffix(".txt")), 60) != 1:
        return "a second process was not refused"
    time.sleep(rng.uniform(0, 0.02))
    kill_tree(child)
    with hold(run, "being trained"):
        remove_stale(run)
        left = sorted(file.name for file in run.iterdir())
        content = (run / "file").read_bytes()
    if left != [".lock", "file"]:
        return f"left are {left}"
    number = content[: len(content) // 1000]
    return None if content == number * 1000 else "half a file"


@pytest.mark.slow
def test_kills_at_random_moments_free_the_lock_at_once(tmp_path, campaign, monkeypatch):
    monkeypatch.setattr(run_lock, "PATIENCE", 10.0)  # for killed children that have not ended yet
    rng = random.Random(f"lock {campaign.seed}")
    for number in range(campaign.number(50)):
        try:
            wrong = outcome(tmp_path / f"run{number}", rng)
        except InUseError as error:
            wrong = str(error)
        if wrong is None:
            campaign.survived("lock")
        else:
            campaign.lost("lock", wrong)
