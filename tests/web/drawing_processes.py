"""Drawing processes for tests: in a thread of the test, or real ones that hang, crash or cannot load."""

import os
import signal
import threading
import time
from contextlib import contextmanager, nullcontext
from multiprocessing import Pipe
from pathlib import Path

import torch

from asyncdiff.tasks import State
from asyncdiff.web.drawing_process import DrawingProcess, answer_requests


class ThreadProcess(DrawingProcess):
    """Draws in a thread, with a plan that is shared with the test."""

    def __init__(self, plan, facts=None):
        self._connection, child = Pipe()
        load = lambda: nullcontext((plan, facts))  # noqa: E731
        threading.Thread(target=answer_requests, args=(child, load, lambda: None), daemon=True).start()

    def kill(self):
        self._connection.close()

    def wait(self):
        return "closed"


class Hostile:
    """Plan whose drawings do what the seed of the request says.

    0: two steps, 1: a step that never ends, 2: a step that kills the process, 3: a step after which it ends.
    """

    movie = None
    record_file = Path("predict.yaml")
    requests = ()
    folder = Path()

    def __call__(self, request, folder):
        self.seed = request.seed
        return self, "line"

    def steps(self):
        yield State(lambda: torch.zeros(1, 1, 2, 2), None, 0, 2)
        if self.seed == 1:
            time.sleep(3600)
        if self.seed == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.seed == 3:
            os._exit(7)
        yield State(lambda: torch.zeros(1, 1, 2, 2), None, 2, 2)


@contextmanager
def open_hostile(first):
    """Loads the hostile plan."""
    yield Hostile(), os.getpid()


class LoadsOnce:
    """Loads the plan the first time only; afterwards `how` happens: an error, or the process is killed."""

    def __init__(self, how):
        self.how = how

    @contextmanager
    def __call__(self, first):
        if not first and self.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if not first or self.how == "never":
            raise ValueError("the checkpoint is gone")
        yield Hostile(), os.getpid()
