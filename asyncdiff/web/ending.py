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
        code: exit code if the program is ended; None for 128 + the number of the signal.
    """

    def __init__(self, clean: Sequence[Callable[[], Any]]):
        self.clean = clean
        self.code: int | None = None
        self._asked = False
        with suppress(ValueError):  # signal handlers need the main thread
            signal.signal(signal.SIGTERM, self._handle)
            signal.signal(signal.SIGINT, self._handle)

    def _handle(self, number: int, frame: Any) -> None:
        """Raise KeyboardInterrupt the first time."""
        seconds = 0.0 if self._asked else GRACE
        timer = threading.Timer(seconds, self._end, [number])
        timer.daemon = True
        timer.start()
        if not self._asked:
            self._asked = True
            raise KeyboardInterrupt

    def _end(self, number: int) -> None:
        """End the program, even while threads are running."""
        cleaning = threading.Thread(target=self._clean, daemon=True)
        cleaning.start()
        cleaning.join(CLEANING)
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(128 + number if self.code is None else self.code)

    def _clean(self) -> None:
        for function in self.clean:
            function()
