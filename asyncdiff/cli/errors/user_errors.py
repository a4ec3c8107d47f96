"""End the program with one line for a user error, which is raised on purpose; a bug keeps its traceback."""

import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonargparse

from asyncdiff.cli.errors.parser import UsageError
from asyncdiff.cli.errors.system_errors import system_error_message, system_error_text, unknown_home_message
from asyncdiff.foreign_text import visible, visible_lines

# Packages whose `raise ValueError` is meant for the user: this project, and the code that reads Trainer arguments.
VALIDATING_PACKAGES = ("asyncdiff", "datamodules", "lightning.pytorch.trainer")
MAX_MESSAGE = 2000  # characters; the middle of a longer message is left out
PARSER_FOLDER = Path(jsonargparse.__path__[0])


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Exit with code 2 after a user error inside, and with 130 after Ctrl-C; both print one line.

    Warnings inside show characters of names that would control a terminal as their escapes.
    """
    try:
        with _visible_warnings():
            yield
    except (Exception, KeyboardInterrupt) as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        message = "interrupted" if interrupted else user_error_message(error)
        if message is None or os.environ.get("ASYNCDIFF_TRACEBACK"):
            raise
        print(message if interrupted else f"error: {message}", file=sys.stderr)
        sys.exit(128 + signal.SIGINT if interrupted else 2)


@contextmanager
def _visible_warnings() -> Iterator[None]:
    original = warnings.showwarning

    def show(message: Any, *where: Any, **options: Any) -> None:
        text = str(message)
        original(message if visible_lines(text) == text else visible_lines(text), *where, **options)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = original


def user_error_message(error: BaseException) -> str | None:
    """Return the one-line message of an error that was raised on purpose or by the system, or None for a bug."""
    if isinstance(error, UsageError) or _is_misconfiguration(error):
        return _one_line(str(error))
    if isinstance(error, RuntimeError):
        return None if (message := unknown_home_message(error)) is None else _one_line(message)
    if not isinstance(error, (ValueError, OSError)):
        return None
    last = traceback.extract_tb(error.__traceback__)[-1]
    # jsonargparse wraps errors raised by constructors.
    if Path(last.filename).is_relative_to(PARSER_FOLDER) and error.__cause__:
        return user_error_message(error.__cause__)
    worker = re.search(r"Original Traceback.*\n\w+: (?P<message>.*)", str(error), re.DOTALL)
    if worker:  # raised in a data-loading process, whose traceback arrives as text
        frames = re.findall(r'File "(.+?)", line \d+, in .*\n\s+(.*)', str(error))
        if frames and _raised_on_purpose(*frames[-1]):
            return _one_line(worker["message"])
        message = system_error_text(worker["message"].strip())
    else:
        on_purpose = _raised_on_purpose(last.filename, last.line or "")
        message = str(error) if on_purpose else system_error_message(error)
    return None if message is None else _one_line(message)


def _is_misconfiguration(error: BaseException) -> bool:
    """Return whether this is Lightning's error for an impossible combination of settings (False without Lightning)."""
    module = sys.modules.get("lightning.pytorch.utilities.exceptions")
    return module is not None and isinstance(error, module.MisconfigurationException)


def _raised_on_purpose(filename: str, line: str) -> bool:
    """Return whether a `raise` statement of a validating package raised the error, not a function that it called."""
    packages = [sys.modules[name] for name in VALIDATING_PACKAGES if name in sys.modules]
    folders = [path for package in packages for path in package.__path__]
    return line.startswith("raise ") and any(Path(filename).is_relative_to(folder) for folder in folders)


def _one_line(text: str) -> str:
    return visible(" ".join(text.split()), MAX_MESSAGE)
