"""Mistakes of the user's, which are refused on purpose, told from bugs, whose traceback is needed."""

import re
import sys
import traceback
from pathlib import Path

import jsonargparse

# Packages whose `raise ValueError` is meant for the user: ours, and what reads the arguments of the Trainer.
CHECKING = ("asyncdiff", "datamodules", "lightning.pytorch.trainer")
PARSER = Path(jsonargparse.__path__[0])


def users_error(error: BaseException) -> str | None:
    """The one line of an error that was raised on purpose, for the user; None for a bug, whose traceback is needed."""
    if _is_misconfiguration(error):
        return _one_line(str(error))
    if not isinstance(error, (ValueError, OSError)):
        return None
    last = traceback.extract_tb(error.__traceback__)[-1]
    if Path(last.filename).is_relative_to(PARSER) and error.__cause__:  # wrapped where a constructor raised it
        return users_error(error.__cause__)
    worker = re.search(r"Original Traceback.*\n\w+: (?P<message>.*)", str(error), re.DOTALL)
    if worker:  # raised in a process that loads data, which passes on its traceback as text
        frames = re.findall(r'File "(.+?)", line \d+, in .*\n\s+(.*)', str(error))
        return _one_line(worker["message"]) if frames and _on_purpose(*frames[-1]) else None
    return _one_line(str(error)) if _on_purpose(last.filename, last.line or "") else None


def _is_misconfiguration(error: BaseException) -> bool:
    """Whether it is Lightning's word for an impossible combination of settings, if Lightning is in use at all."""
    loaded = sys.modules.get("lightning.pytorch.utilities.exceptions")
    return loaded is not None and isinstance(error, loaded.MisconfigurationException)


def _on_purpose(filename: str, line: str) -> bool:
    """Whether a `raise` in the packages that check arguments ended it, rather than a function called there."""
    loaded = [sys.modules[name] for name in CHECKING if name in sys.modules]  # no other can have raised it
    homes = [path for package in loaded for path in package.__path__]
    return line.startswith("raise ") and any(Path(filename).is_relative_to(home) for home in homes)


def _one_line(text: str) -> str:
    return " ".join(text.split())
