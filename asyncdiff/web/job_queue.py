"""Job queue of the page: one worker thread runs draw requests in order; every job can be previewed and stopped.

Gradio's own queue resumes a handler in another thread after every step, where autocast is off again.
"""

import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Float, UInt8
from torch import Tensor

from asyncdiff.tasks import Request, State
from asyncdiff.tasks.photos import collect_warnings, to_bytes
from asyncdiff.web.draw_request import DrawRequest, check
from asyncdiff.web.limits import Limits

PREVIEW_INTERVAL = 0.1  # minimum seconds between previews
# Minimum time between previews as a multiple of a preview's duration, which may include decoding latents.
PREVIEW_COST = 4

Status = Literal["waiting", "drawing", "done", "stopped", "failed"]


@runtime_checkable
class Drawing(Protocol):
    """Validated request, as `asyncdiff.cli.jobs.draw.DrawJob`: draws and writes its files."""

    @property
    def folder(self) -> Path:
        """Folder of the files."""

    @property
    def requests(self) -> Sequence[Request]:
        """Requests, one per image."""

    @property
    def movie(self) -> Path | None:
        """File of the GIF; None if none is written."""

    @property
    def record_file(self) -> Path:
        """YAML file that reproduces the images."""

    def steps(self) -> Iterator[State]:
        """Draw, and write the files; yield the state after every step, with the steps of all batches."""


# Turns a request into a drawing that writes into the folder, and the equivalent command line; raises ValueError or
# OSError for an invalid request.
Plan = Callable[[DrawRequest, Path], tuple[Drawing, str]]


@dataclass(frozen=True)
class Preview:
    """Intermediate images of a running job.

    Attributes:
        images: 8-bit pixels.
        levels: noise level of each patch; None for images sampled window by window.
        done: number of finished steps.
        total: total number of steps; None if unknown.
    """

    images: UInt8[Tensor, "b c h w"]
    levels: Float[Tensor, "b gh gw"] | None
    done: int
    total: int | None


@dataclass(frozen=True)
class Result:
    """Files of a finished job.

    Attributes:
        images: image files, in the order of their seeds.
        gif: GIF of the sampling trajectory, or None.
        command: command line that draws the same images.
        record: YAML file that reproduces the images with `train.py predict`.
        notes: unexpected changes to the photo, such as cropping.
        seconds: duration of the job.
    """

    images: list[Path]
    gif: Path | None
    command: str
    record: Path
    notes: list[str]
    seconds: float


@dataclass(eq=False)
class Job:
    """Draw request in the queue.

    Attributes:
        request: request to carry out.
        status: current status.
        preview: latest preview; None before the first.
        result: written files; None until the job is done.
        error: one-line message if the job failed, else empty.
        stopping: whether the job must stop before its next sampling step.
    """

    request: DrawRequest
    status: Status = "waiting"
    preview: Preview | None = None
    result: Result | None = None
    error: str = ""
    stopping: bool = False
    _ended: threading.Event = field(default_factory=threading.Event)

    @property
    def ended(self) -> bool:
        """Whether the job has reached its final status."""
        return self._ended.is_set()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until the job has ended, at most `seconds`; return whether it has."""
        return self._ended.wait(seconds)

    def run(self, plan: Plan, make_folder: Callable[[], Path]) -> None:
        """Plan, sample and write the files; for an invalid request, set `error` instead.

        Args:
            plan: function that turns the request into a drawing.
            make_folder: function that creates the job's folder.
        """
        started = time.monotonic()
        self.status = "drawing"
        try:
            with collect_warnings() as notes:
                drawing, command = plan(self.request, make_folder())
                if not self._sample(drawing):
                    self.status = "stopped"
                    return
            files = [drawing.folder / f"{request.name}.png" for request in drawing.requests]
            seconds = time.monotonic() - started
            self.result = Result(files, drawing.movie, command, drawing.record_file, notes, seconds)
            self.status = "done"
        except (ValueError, OSError) as error:
            self.error, self.status = " ".join(str(error).split()), "failed"
        except Exception as error:  # a bug: the worker prints the traceback and continues with the next job
            self.error, self.status = f"{type(error).__name__}: see the server's terminal for details", "failed"
            raise
        finally:
            self._ended.set()

    def cancel(self) -> None:
        """End a job that has not started."""
        self.status = "stopped"
        self._ended.set()

    def _sample(self, drawing: Drawing) -> bool:
        """Run the sampling steps; return False if the job was stopped before the last one."""
        next_preview = 0.0
        for state in drawing.steps():
            if self.stopping:
                return False
            started = time.monotonic()
            if started >= next_preview or state.done == state.total:
                levels = None if state.t is None else state.t.float().cpu()
                self.preview = Preview(to_bytes(state.images), levels, state.done, state.total)
                next_preview = started + max(PREVIEW_INTERVAL, PREVIEW_COST * (time.monotonic() - started))
        return True


class JobQueue:
    """Queue that runs one job at a time, first come, first served.

    Args:
        plan: function that turns requests into drawings.
        root: folder for the jobs' numbered folders.
        limits: limits on requests and on the queue.
    """

    def __init__(self, plan: Plan, root: Path, limits: Limits | None = None):
        self.plan = plan
        self.root = root
        self.limits = limits or Limits()
        self._jobs: list[Job] = []  # those that have not ended; the first one is running
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="job queue")
        self._context = copy_context()  # of the creator; holds the packages whose classes may be imported

    def submit(self, request: DrawRequest) -> Job:
        """Queue a request and return its job; raise ValueError if it exceeds the limits or the queue is full."""
        check(request, self.limits)
        job = Job(request)
        with self._lock:
            if len(self._jobs) > self.limits.queued:
                raise ValueError(f"the queue is full with {self.limits.queued} waiting requests: try again later")
            self._jobs.append(job)
            try:
                self._worker.submit(self._context.run, self._run, job)
            except RuntimeError as error:  # after `close`
                self._jobs.remove(job)
                raise ValueError("the server has been stopped: start it again") from error
        return job

    def jobs_ahead(self, job: Job) -> int:
        """Return the number of jobs that must end before this one starts."""
        with self._lock:
            return self._jobs.index(job) if job in self._jobs else 0

    def stop(self, job: Job) -> None:
        """Cancel a waiting job immediately, or stop a running one before its next sampling step."""
        job.stopping = True
        with self._lock:
            if job in self._jobs[1:]:
                self._jobs.remove(job)
                job.cancel()

    def close(self) -> None:
        """Stop all jobs and wait for the worker to end."""
        with self._lock:
            self._worker.shutdown(wait=False)  # accepts no more jobs
            for job in self._jobs:
                job.stopping = True
        self._worker.shutdown()

    def _run(self, job: Job) -> None:
        try:
            if job.stopping:
                job.cancel()
            else:
                job.run(self.plan, self._make_folder)
        except Exception:
            traceback.print_exc()
        finally:
            with self._lock:
                if job in self._jobs:
                    self._jobs.remove(job)

    def _make_folder(self) -> Path:
        """Create a folder named by the next free number."""
        self.root.mkdir(parents=True, exist_ok=True)
        taken = [int(path.name) for path in self.root.iterdir() if path.name.isdecimal()]
        folder = self.root / f"{max(taken, default=0) + 1:04d}"
        folder.mkdir()
        return folder
