"""End the server on SIGTERM and Ctrl-C, within seconds whatever it is doing."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

GRACE = 3.0  # seconds after the first signal in which the program may end by itself
CLEANING = 1.0  # seconds for the functions that clean up before the program is ended


class Ending:
    """Turns the first signal into KeyboardInterrupt, and ends the program if that takes too long, or at a second one.

    Args:
        clean: functions that end other processes and delete files before the program is ended.

    Attributes:
        code: exit code of a program that is interrupted; 128 + the number of the signal by default.
    """

    def __init__(self, clean: Sequence[Callable[[], Any]]):
        self.clean = clean
        self.code: int | None = None
        self._number: int | None = None  # of the first signal
        with suppress(ValueError):  # signal handlers need the main thread
            signal.signal(signal.SIGTERM, self._handle)
            signal.signal(signal.SIGINT, self._handle)

    def end(self) -> None:
        """Clean up and end the program: threads that still serve a page, and PyTorch's own end, would take long."""
        cleaning = threading.Thread(target=self._clean, daemon=True)
        cleaning.start()
        cleaning.join(CLEANING)
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # nobody may listen any more
                stream.flush()
        os._exit(128 + (self._number or signal.SIGINT) if self.code is None else self.code)

    def _handle(self, number: int, frame: Any) -> None:
        """Raise KeyboardInterrupt the first time."""
        first, self._number = self._number is None, self._number or number
        timer = threading.Timer(GRACE if first else 0.0, self.end)
        timer.daemon = True
        timer.start()
        if first:
            raise KeyboardInterrupt

    def _clean(self) -> None:
        for function in self.clean:
            function()
