"""What a program did that a GPU would feel: waits of the host, mixed devices and kernels."""

import sys
import threading
from collections import Counter
from pathlib import Path

LIBRARY = str(Path(__file__).parent)
# Frames of these are passed over when a place in the program is looked for.
INNER = (f"{LIBRARY}/watch.py", f"{LIBRARY}/modes.py", f"{LIBRARY}/cuda_functions.py", f"{LIBRARY}/fake_ranks.py")
INNER += (f"{LIBRARY}/pretended_cuda.py", "/site-packages/torch/", "/contextlib.py", "/unittest/mock.py", "<")
ROOTS = ("/site-packages/", "/asyncdiff/", "/datamodules/", "/tests/", "/benchmarks/")


class Watch:
    """What was seen of a program since the last `clear`.

    Attributes:
        waits: (what, FILE:LINE) of every time at which the host would have waited for the GPU or for other processes.
        mixed: (what, FILE:LINE) of what would have failed on a GPU, or read memory before its content had arrived.
        kernels: number of operators that the GPU would have been given, by name.
        steps: number of calls of `step`.
    """

    def __init__(self) -> None:
        self.waits: list[tuple[str, str]] = []
        self.mixed: list[tuple[str, str]] = []
        self.kernels: Counter[str] = Counter()
        self.steps = 0
        self.clock = 0  # advances with each event recorded
        self.arrived = 0  # copies to the host marked with at most this time have arrived
        self._thread = threading.get_ident()

    def wait(self, what: str) -> None:
        """Record that the host waits; nothing waits for other threads."""
        self.arrived = self.clock
        if threading.get_ident() == self._thread:
            self.waits.append((what, place()))

    def mix(self, what: str) -> None:
        """Record what would have failed."""
        self.mixed.append((what, place()))

    def step(self) -> None:
        """Begin a step: events of earlier ones have happened, so that nothing waits for them."""
        self.steps += 1

    def clear(self) -> None:
        """Forget what was seen, as after setting up."""
        self.waits.clear()
        self.mixed.clear()
        self.kernels.clear()


def place() -> str:
    """Return FILE:LINE of the innermost frame outside PyTorch and this library."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not any(name.startswith(inner) or (inner[0] == "/" and inner in name) for inner in INNER):
            for root in ROOTS:
                if root in name:
                    name = ("" if root == "/site-packages/" else root[1:]) + name.split(root)[-1]
                    break
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"
