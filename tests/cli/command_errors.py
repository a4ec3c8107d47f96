"""Run commands that must fail."""

from collections.abc import Callable
from typing import Any

import pytest

from asyncdiff.__main__ import main


@pytest.fixture
def expect_error(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Function that runs a command that must fail, and returns its message: one line, exit code 2, nothing printed.

    With `chatter`, other lines may precede the message.
    """

    def run(*argv: str, chatter: bool = False, command: Any = main) -> str:
        with pytest.raises(SystemExit) as stopped:
            command(list(argv))
        printed = capfd.readouterr()
        lines = printed.err.splitlines()
        assert (stopped.value.code, "Traceback" in printed.err) == (2, False), printed.err
        assert chatter or (printed.out, len(lines)) == ("", 1), printed
        assert lines[-1].startswith("error: ")
        return lines[-1].removeprefix("error: ")

    return run
