"""Files with damaged bytes: refused in one line that names the file, or read as they were; no crash, no hang.

A format without checksums cannot tell a changed picture from another picture: such results count as undetectable.
"""

import os
import pickle
import random
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import pytest
from cases import SUBJECTS, Subject
from corruptions import ALL
from faults.campaign import Campaign

from asyncdiff.cli.errors import users_error

NUMBER = 32  # faults of every kind of file at scale 1
LIMIT = 20  # seconds for one file

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


class HangError(BaseException):
    """It took too long; no reader may take it for a damaged file."""


@contextmanager
def in_time() -> Iterator[None]:
    """Ends what takes longer than the limit."""

    def stop(signum: int, frame: FrameType | None) -> NoReturn:
        raise HangError(f"takes longer than {LIMIT} s")

    usual = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, usual)


def outcome(subject: Subject, folder: Path, intact: Any) -> str:
    """ "survived", "undetectable", or what went wrong."""
    try:
        with in_time(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = subject.read(folder)
    except HangError as error:
        return str(error)
    except Exception as error:
        line = users_error(error)
        if line is None:
            return f"ends with {type(error).__name__}: {error}"[:300]
        if subject.name not in line and str(folder) not in line:
            return f"does not name the file: {line}"
        return "survived"
    if repr(found) == repr(intact):
        return "survived"
    return "another result" if subject.checked else "undetectable"


def in_a_child(subject: Subject, folder: Path, intact: Any) -> str:
    """The same of a process that may be ended by a signal."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reading)
            os.write(writing, pickle.dumps(outcome(subject, folder, intact)))
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        told = stream.read()
    _, status = os.waitpid(child, 0)
    return pickle.loads(told) if told else f"ends with signal {os.WTERMSIG(status)}"


@pytest.mark.parametrize("kind", SUBJECTS)
def test_damage_is_refused_by_name_or_changes_nothing(
    kind: str, campaign: Campaign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASYNCDIFF_CACHE", str(tmp_path / "cache"))
    subject, folder = SUBJECTS[kind], tmp_path / "folder"
    folder.mkdir()
    subject.make(folder)
    judged = in_a_child if subject.mapped else outcome
    content = (folder / subject.name).read_bytes()
    intact: Any = None if subject.mapped else subject.read(folder)
    if subject.mapped:  # never opened here: a library may remember what it has opened
        reading, writing = os.pipe()
        if not os.fork():
            with os.fdopen(writing, "wb") as stream:
                pickle.dump(subject.read(folder), stream)
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as stream:
            intact = pickle.load(stream)
        os.wait()
    assert judged(subject, folder, intact) == "survived"
    assert judged(subject, folder, "something else") == ("another result" if subject.checked else "undetectable")
    choose = random.Random(f"{kind} {campaign.seed}")
    for number in range(campaign.number(NUMBER)):
        damage = ALL[number % len(ALL)]
        if (changed := damage(content, choose)) == content:
            continue
        (folder / subject.name).write_bytes(changed)
        found = judged(subject, folder, intact)
        if found == "survived":
            campaign.survived(f"mutated {kind}")
        elif found == "undetectable":
            campaign.undetectable(f"mutated {kind}")
        else:
            campaign.lost(f"mutated {kind}", f"{damage.__name__} {number}: {found}")
