"""Exit codes of commands: a user error prints one line and exits with 2, Ctrl-C with 130; a bug keeps its traceback."""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from asyncdiff.cli.errors.messages import explain
from asyncdiff.cli.errors.parse_jsonargparse import UsageError
from asyncdiff.cli.errors.user_errors import user_error_message


@contextmanager
def one_line_errors(argv: Sequence[str]) -> Iterator[None]:
    """End the program with a one-line message if a user error is raised inside; `argv` is the command line."""
    try:
        yield
    except UsageError as error:
        _exit(explain(error, argv), error)
    except KeyboardInterrupt:
        if os.environ.get("ASYNCDIFF_TRACEBACK"):
            raise
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        message = user_error_message(error)
        if message is None:
            raise
        _exit(message, error)


def _exit(message: str, error: Exception) -> NoReturn:
    """Exit with a one-line message on stderr, or raise the error if ASYNCDIFF_TRACEBACK is set."""
    if os.environ.get("ASYNCDIFF_TRACEBACK"):
        raise error
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
