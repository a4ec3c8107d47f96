"""Process that holds the model and draws. It ends with the server, and can be ended at any time.

The parent imports no PyTorch for it, and the child none before it watches the pipe, whose end tells that the server is
gone. Messages are pickled here and sent as bytes: the connection's own pickling would share the memory of tensors.
"""

import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncdiff.web.draw_request import DrawRequest
    from asyncdiff.web.drawing import Plan

NICENESS = 5  # lower priority than the server's, so that the page answers while all cores draw

# Loads the model in the drawing process: a picklable function of whether it is the first time, that returns a context
# with the plan and with what the server must know about the model. Raises ValueError or OSError with a message for the
# user.
Opening = Callable[[bool], AbstractContextManager[tuple["Plan", Any]]]


@dataclass(frozen=True)
class Opened:
    """The process is ready to draw.

    Attributes:
        facts: what the opening returned about the model.
    """

    facts: Any


@dataclass(frozen=True)
class CannotOpen:
    """The process could not load the model, and ends.

    Attributes:
        message: one line.
    """

    message: str


class DrawingProcess:
    """Process that draws, as seen by the server. Only one thread may receive, and only one may send.

    Args:
        opening: function that loads the model in the process.
        first: whether facts about the model are needed, in contrast to another start.
    """

    def __init__(self, opening: Opening, *, first: bool = True):
        context = get_context("spawn")
        self._connection, child = context.Pipe()
        self._process = context.Process(
            target=serve_pipe, args=(child, pickle.dumps(opening), first), name="drawing", daemon=True
        )
        # The process inherits the mask: Ctrl-C in the terminal reaches it, too, but it is the server that ends it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            child.close()

    def draw(self, request: "DrawRequest", folder: Path) -> None:
        """Begin to draw a request after the last report on the one before. An ended process is noticed later."""
        self._send((request, folder))

    def stop(self) -> None:
        """Ask the process to stop drawing before its next step."""
        self._send(None)

    def receive(self, seconds: float) -> Any:
        """Return the next message, or None if there is none within `seconds`; raise EOFError if the process ended."""
        try:
            return _receive(self._connection) if self._connection.poll(seconds) else None
        except (OSError, pickle.UnpicklingError) as error:
            raise EOFError from error

    def kill(self) -> None:
        """End the process at once."""
        if self._process.is_alive():
            self._process.kill()

    def wait(self) -> str:
        """Wait for the end of a process that sends nothing more, and describe how it ended."""
        self._process.join(1.0)
        self.kill()
        self._process.join(5.0)
        code = self._process.exitcode
        return f"ended by {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"

    def _send(self, message: Any) -> None:
        with suppress(OSError):  # of a process that has ended
            self._connection.send_bytes(pickle.dumps(message))


def serve_pipe(connection: Connection, opening: bytes, first: bool) -> None:
    """Load the model and draw, in the drawing process, until the server is gone.

    Args:
        connection: the process's end of the pipe.
        opening: pickled `Opening`.
        first: argument of the opening.
    """
    os.nice(NICENESS)

    def load() -> AbstractContextManager[tuple["Plan", Any]]:
        loaded: Opening = pickle.loads(opening)  # noqa: S301  from the server
        return loaded(first)

    answer_requests(connection, load, gone=lambda: os._exit(1))


def answer_requests(
    connection: Connection, load: Callable[[], AbstractContextManager[tuple["Plan", Any]]], gone: Callable[[], None]
) -> None:
    """Load the model, and draw what is requested over the pipe.

    Args:
        connection: the end of the pipe that receives requests.
        load: opening with its argument.
        gone: called in another thread when the server has closed its end of the pipe.
    """
    inbox = _Inbox(connection, gone)
    from asyncdiff.web.drawing import draw  # imports PyTorch

    def send(message: Any) -> None:
        connection.send_bytes(pickle.dumps(message))

    with ExitStack() as stack, suppress(BrokenPipeError):
        try:
            plan, facts = stack.enter_context(load())
        except (ValueError, OSError) as error:
            send(CannotOpen(" ".join(str(error).split())))
            return
        send(Opened(facts))
        for request, folder in inbox:
            for report in draw(plan, request, folder, inbox.stopping.is_set):
                send(report)


class _Inbox:
    """Messages from the server, received in a thread of its own; iterate over the requests.

    Attributes:
        stopping: event that is set while the last request must not be continued.
    """

    def __init__(self, connection: Connection, gone: Callable[[], None]):
        self.stopping = threading.Event()
        self._requests: SimpleQueue[Any] = SimpleQueue()
        threading.Thread(target=self._listen, args=(connection, gone), daemon=True).start()

    def __iter__(self) -> Iterator[tuple["DrawRequest", Path]]:
        return iter(self._requests.get, None)

    def _listen(self, connection: Connection, gone: Callable[[], None]) -> None:
        try:
            while True:
                if (request := _receive(connection)) is None:
                    self.stopping.set()
                else:
                    self.stopping.clear()
                    self._requests.put(request)
        except (EOFError, OSError):
            self._requests.put(None)
            gone()


def _receive(connection: Connection) -> Any:
    return pickle.loads(connection.recv_bytes())  # noqa: S301  from the other end of a private pipe
