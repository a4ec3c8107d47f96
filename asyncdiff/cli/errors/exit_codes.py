"""How a command ends: mistakes of the user's with one line and exit code 2, Ctrl-C with 130, bugs with a traceback."""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from asyncdiff.cli.errors.messages import explain
from asyncdiff.cli.errors.parse_jsonargparse import UsageError
from asyncdiff.cli.errors.user_errors import users_error


@contextmanager
def one_line_errors(words: Sequence[str]) -> Iterator[None]:
    """Errors of the user's within end the program with one line; `words` is the command line."""
    try:
        yield
    except UsageError as error:
        _stop(explain(error, words), error)
    except KeyboardInterrupt:
        if os.environ.get("ASYNCDIFF_TRACEBACK"):
            raise
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        line = users_error(error)
        if line is None:
            raise
        _stop(line, error)


def _stop(line: str, error: Exception) -> NoReturn:
    """End the program with a line on stderr, or with the traceback if ASYNCDIFF_TRACEBACK asks for it."""
    if os.environ.get("ASYNCDIFF_TRACEBACK"):
        raise error
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)
