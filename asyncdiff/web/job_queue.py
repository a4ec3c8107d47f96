"""Wishes that wait, and the one that is being drawn: a queue with one worker, whose jobs can be seen and stopped."""

import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Float, UInt8
from torch import Tensor

from asyncdiff.tasks import Request, State
from asyncdiff.tasks.photos import collected, to_bytes
from asyncdiff.web.draw_request import DrawRequest, Limits, check

LOOKS = 0.1  # seconds between two looks at what is being drawn, at least
SHARE = 4  # and so many times as long as a look takes: latents are decoded for each

Where = Literal["waiting", "drawing", "done", "stopped", "failed"]


@runtime_checkable
class Step(Protocol):
    """One state of what is being drawn, see `asyncdiff.cli.commands.draw.Step`."""

    @property
    def state(self) -> State:
        """Of the batch."""

    @property
    def done(self) -> int:
        """Steps so far."""

    @property
    def total(self) -> int | None:
        """Of these, None where it is not known."""


@runtime_checkable
class Drawing(Protocol):
    """What the words of a command ask for, see `asyncdiff.cli.commands.draw.Drawing`."""

    @property
    def requests(self) -> Sequence[Request]:
        """The pictures."""

    @property
    def folder(self) -> Path:
        """Of their files."""

    @property
    def filmed(self) -> bool:
        """Whether there is a movie."""

    @property
    def movie(self) -> Path:
        """Its file."""

    @property
    def recorded(self) -> Path:
        """The file that says how they are made."""

    def steps(self) -> Iterator[Step]:
        """Every state; after the last one the files are written."""


@runtime_checkable
class Plan(Protocol):
    """Makes a drawing of a wish, in a folder of its own; returns the line that does the same, too."""

    def __call__(self, wish: DrawRequest, folder: Path) -> tuple[Drawing, str]:
        """All that can be refused is refused here."""


@dataclass(frozen=True)
class Preview:
    """What can be seen of pictures on their way.

    Attributes:
        images: 8-bit pixels.
        levels: the noise levels of their patches, None on a canvas of windows.
        done: steps so far.
        total: of these, None where it is not known.
    """

    images: UInt8[Tensor, "b c h w"]
    levels: Float[Tensor, "b gh gw"] | None
    done: int
    total: int | None


@dataclass(frozen=True)
class Result:
    """Finished pictures.

    Attributes:
        pictures: their files.
        movie: its file, None without.
        line: the command that draws the same.
        recorded: a YAML file that says the same to `train.py predict`.
        notes: what was done with the photo that its owner may not expect.
        seconds: that it took.
    """

    pictures: list[Path]
    movie: Path | None
    line: str
    recorded: Path
    notes: list[str]
    seconds: float


class Job:
    """A wish on its way.

    Attributes:
        wish: what is wanted.
        where: it stands.
        look: the last one, None before the first.
        result: once it is done.
        error: in one line, if it failed.
    """

    def __init__(self, wish: DrawRequest):
        self.wish = wish
        self.where: Where = "waiting"
        self.look: Preview | None = None
        self.result: Result | None = None
        self.error = ""
        self._stop = threading.Event()
        self._ended = threading.Event()

    def stop(self) -> None:
        """End it before the sampler's next step; `JobQueue.stop` does so for one that waits, too."""
        self._stop.set()

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop."""
        return self._stop.is_set()

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self._ended.is_set()

    def wait(self, seconds: float | None = None) -> bool:
        """Whether it has ended, at once or within the seconds."""
        return self._ended.wait(seconds)

    def draw(self, plan: Plan, folder: Callable[[], Path]) -> None:
        """Draw it, from planning to the files; mistakes end up in `error`."""
        started = time.monotonic()
        self.where = "drawing"
        try:
            with collected() as notes:
                drawing, line = plan(self.wish, folder())
                if not self._walk(drawing):
                    self.where = "stopped"
                    return
            files = [drawing.folder / f"{request.name}.png" for request in drawing.requests]
            seconds = time.monotonic() - started
            movie = drawing.movie if drawing.filmed else None
            self.result = Result(files, movie, line, drawing.recorded, notes, seconds)
            self.where = "done"
        except (ValueError, OSError) as error:
            self.error, self.where = " ".join(str(error).split()), "failed"
        except Exception as error:  # a bug: its traceback is for whoever started the server, the queue goes on
            self.error, self.where = f"{type(error).__name__}: the terminal of the server tells more", "failed"
            raise
        finally:
            self._ended.set()

    def end(self) -> None:
        """End it without having begun."""
        self.where = "stopped"
        self._ended.set()

    def _walk(self, drawing: Drawing) -> bool:
        """Whether it came to its end."""
        after = 0.0
        for step in drawing.steps():
            if self.stopping:
                return False
            started = time.monotonic()
            if started >= after or step.done == step.total:
                levels = step.state.t
                images = to_bytes(step.state.images)
                self.look = Preview(images, None if levels is None else levels.float().cpu(), step.done, step.total)
                after = started + max(LOOKS, SHARE * (time.monotonic() - started))
        return True


class JobQueue:
    """Draws one wish after the other, in the order that they came.

    Args:
        plan: makes drawings of wishes.
        root: folder of the jobs' folders, which are numbered.
        limits: of wishes and of the queue.
    """

    def __init__(self, plan: Plan, root: Path, limits: Limits | None = None):
        self.plan = plan
        self.root = root
        self.limits = limits or Limits()
        self._jobs: list[Job] = []  # the first one is being drawn
        self._changed = threading.Condition()
        self._open = True
        # In the context of whoever opens it: which classes may be named is part of that.
        self._worker = threading.Thread(target=copy_context().run, args=(self._work,), name="studio", daemon=True)
        self._worker.start()

    def submit(self, wish: DrawRequest) -> Job:
        """The job of a wish; ValueError if it asks for too much, or if too many wait."""
        check(wish, self.limits)
        job = Job(wish)
        with self._changed:
            if not self._open:
                raise ValueError("the server must be running, got one that is closed: start it again")
            if len(self._jobs) > self.limits.waiting:
                raise ValueError(f"at most {self.limits.waiting} wishes may wait, got one more: try again in a while")
            self._jobs.append(job)
            self._changed.notify_all()
        return job

    def before(self, job: Job) -> int:
        """How many jobs are to be drawn before this one."""
        with self._changed:
            return self._jobs.index(job) if job in self._jobs else 0

    def stop(self, job: Job) -> None:
        """End a job that waits now, one that is drawn before the sampler's next step."""
        job.stop()
        with self._changed:
            if job in self._jobs[1:]:
                self._jobs.remove(job)
                job.end()

    def close(self) -> None:
        """Stop all jobs and the worker."""
        with self._changed:
            self._open = False
            for job in self._jobs:
                job.stop()
            self._changed.notify_all()
        self._worker.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or not self._open)
                if not self._jobs:
                    return
                job = self._jobs[0]
            try:
                if job.stopping:
                    job.end()
                else:
                    job.draw(self.plan, self._folder)
            except Exception:
                traceback.print_exc()
            finally:
                with self._changed:
                    self._jobs.remove(job)

    def _folder(self) -> Path:
        """The next number's, made now."""
        self.root.mkdir(parents=True, exist_ok=True)
        taken = [int(path.name) for path in self.root.iterdir() if path.name.isdecimal()]
        folder = self.root / f"{max(taken, default=0) + 1:04d}"
        folder.mkdir()
        return folder
