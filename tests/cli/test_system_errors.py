import errno
import os
import sys
from pathlib import Path

import pytest

from asyncdiff.cli.errors import user_error_message
from asyncdiff.cli.errors.system_errors import REMEDIES, WITHOUT_PATH

NUMBERS = sorted({*REMEDIES, errno.ENODEV, errno.EBUSY})


def caught(function, *arguments):
    """Return the error that a function raises, as an `except` clause of a command gets it."""
    with pytest.raises((OSError, RuntimeError)) as raised:
        function(*arguments)
    return raised.value


@pytest.mark.parametrize("number", NUMBERS, ids=errno.errorcode.get)
def test_every_error_with_a_path_is_one_clause(number, monkeypatch):
    def refuse(path, *_):
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(os, "mkdir", refuse)
    message = user_error_message(caught(Path("some/new").mkdir))
    assert message == f"some/new: {os.strerror(number)}: {REMEDIES.get(number, 'choose another path')}"


@pytest.mark.parametrize("number", NUMBERS, ids=errno.errorcode.get)
def test_errors_without_a_path_are_bugs_unless_they_concern_open_files(number):
    def write():
        os.write(os.open(os.devnull, os.O_RDONLY), b"x")  # replaced below

    error = caught(write)
    error.errno, error.strerror = number, os.strerror(number)
    expected = f"{os.strerror(number)}: {REMEDIES[number]}" if number in WITHOUT_PATH else None
    assert user_error_message(error) == expected


def test_a_missing_file_of_a_package_is_a_bug():
    assert user_error_message(caught(open, f"{sys.prefix}/lib/missing")) is None
    assert user_error_message(caught(open, Path(__file__).parents[2] / "asyncdiff" / "missing.txt")) is None
    assert user_error_message(caught(open, "missing")) == "missing: No such file or directory: check the path"


@pytest.mark.parametrize(("text", "known"), [("[Errno 2] No such file or directory: 'photo.png'", True), ("5", False)])
def test_errors_of_data_workers_arrive_as_text(text, known):
    frames = 'Original Traceback (most recent call last):\n  File "reader.py", line 3, in read\n    open(path)\n'
    error = caught(exec, f"raise OSError({f'Caught in worker 0.{chr(10)}{frames}FileNotFoundError: {text}'!r})")
    expected = "photo.png: No such file or directory: check the path" if known else None
    assert user_error_message(error) == expected


def test_an_unknown_user_is_named():
    message = user_error_message(caught(Path("~no-such-user-here/x").expanduser))
    assert message == "~no-such-user-here/x: there is no such user: check the path"
    assert user_error_message(caught(exec, "raise RuntimeError('a bug')")) is None
