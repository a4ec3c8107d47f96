"""Distinguish user errors, which are raised on purpose, from bugs, which need a traceback."""

import re
import sys
import traceback
from pathlib import Path

import jsonargparse

# Packages whose `raise ValueError` is meant for the user: this project, and the code that reads Trainer arguments.
VALIDATING_PACKAGES = ("asyncdiff", "datamodules", "lightning.pytorch.trainer")
PARSER_FOLDER = Path(jsonargparse.__path__[0])


def user_error_message(error: BaseException) -> str | None:
    """Return the one-line message of an error that was raised on purpose, or None for a bug."""
    if _is_misconfiguration(error):
        return _one_line(str(error))
    if not isinstance(error, (ValueError, OSError)):
        return None
    last = traceback.extract_tb(error.__traceback__)[-1]
    # jsonargparse wraps errors raised by constructors.
    if Path(last.filename).is_relative_to(PARSER_FOLDER) and error.__cause__:
        return user_error_message(error.__cause__)
    worker = re.search(r"Original Traceback.*\n\w+: (?P<message>.*)", str(error), re.DOTALL)
    if worker:  # raised in a data-loading process, whose traceback arrives as text
        frames = re.findall(r'File "(.+?)", line \d+, in .*\n\s+(.*)', str(error))
        return _one_line(worker["message"]) if frames and _raised_on_purpose(*frames[-1]) else None
    return _one_line(str(error)) if _raised_on_purpose(last.filename, last.line or "") else None


def _is_misconfiguration(error: BaseException) -> bool:
    """Return whether this is Lightning's error for an impossible combination of settings (False without Lightning)."""
    module = sys.modules.get("lightning.pytorch.utilities.exceptions")
    return module is not None and isinstance(error, module.MisconfigurationException)


def _raised_on_purpose(filename: str, line: str) -> bool:
    """Return whether a `raise` statement of a validating package raised the error, not a function that it called."""
    imported = [
        sys.modules[name] for name in VALIDATING_PACKAGES if name in sys.modules
    ]  # packages not imported cannot have raised it
    folders = [path for package in imported for path in package.__path__]
    return line.startswith("raise ") and any(Path(filename).is_relative_to(folder) for folder in folders)


def _one_line(text: str) -> str:
    return " ".join(text.split())
