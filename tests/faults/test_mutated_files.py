"""Files with damaged bytes are refused in one line that names the file, or read unchanged; no crash, no hang.

A format without checksums cannot detect changed pixels: such results count as undetectable.
"""

import random
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import pytest
from cases import CASES, Case
from corruptions import ALL
from faults.campaign import Campaign

from asyncdiff.cli.errors import user_error_message

NUMBER = 32  # faults per file format at scale 1
LIMIT = 20  # seconds for one file

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


class HangError(BaseException):
    """Time limit exceeded; a BaseException, so that no reader mistakes it for a damaged file."""


@contextmanager
def time_limit() -> Iterator[None]:
    """Raise HangError after the time limit."""

    def stop(signum: int, frame: FrameType | None) -> NoReturn:
        raise HangError(f"takes longer than {LIMIT} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def outcome(case: Case, folder: Path, intact: Any) -> str:
    """Return "survived", "undetectable", or what went wrong."""
    try:
        with time_limit(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = case.read(folder)
    except HangError as error:
        return str(error)
    except Exception as error:
        line = user_error_message(error)
        if line is None:
            return f"ends with {type(error).__name__}: {error}"[:300]
        if case.name not in line and str(folder) not in line:
            return f"does not name the file: {line}"
        return "survived"
    if repr(content) == repr(intact):
        return "survived"
    return "another result" if case.checked else "undetectable"


@pytest.mark.parametrize("kind", CASES)
def test_damage_is_refused_or_changes_nothing(
    kind: str, campaign: Campaign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASYNCDIFF_CACHE", str(tmp_path / "cache"))
    case, folder = CASES[kind], tmp_path / "folder"
    folder.mkdir()
    case.make(folder)
    content, intact = (folder / case.name).read_bytes(), case.read(folder)
    assert outcome(case, folder, intact) == "survived"
    assert outcome(case, folder, "something else") == ("another result" if case.checked else "undetectable")
    choose = random.Random(f"{kind} {campaign.seed}")
    for number in range(campaign.number(NUMBER)):
        damage = ALL[number % len(ALL)]
        if (changed := damage(content, choose)) == content:
            continue
        (folder / case.name).write_bytes(changed)
        result = outcome(case, folder, intact)
        if result == "survived":
            campaign.survived(f"mutated {kind}")
        elif result == "undetectable":
            campaign.undetectable(f"mutated {kind}")
        else:
            campaign.lost(f"mutated {kind}", f"{damage.__name__} {number}: {result}")
