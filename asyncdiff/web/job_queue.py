"""Job queue of the page: a process draws requests in order; every job can be previewed, and stops within a second.

A process that does not react, ends, or takes too long is ended and started again: only its job is lost.
"""

import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Literal

from asyncdiff.memory import format_bytes
from asyncdiff.tasks.drawing_cost import DrawingCost
from asyncdiff.web.draw_request import DrawRequest, check
from asyncdiff.web.drawing import Failure, Preview, Result, Stopped, message_for_visitors
from asyncdiff.web.drawing_process import CannotOpen, DrawingProcess, Opened
from asyncdiff.web.limits import Limits
from asyncdiff.web.request_cost import check_cost, format_duration

STOP_SECONDS = 0.9  # a process that has not stopped by then is ended
POLL_SECONDS = 0.05  # interval at which a running job is supervised
PATIENCE = 2  # duration after which a job is ended, relative to the maximum of the estimates
STARTS = 3  # attempts to start the process again

Status = Literal["waiting", "drawing", "done", "stopped", "failed"]


@dataclass(eq=False)
class Job:
    """Draw request in the queue.

    Attributes:
        request: request to carry out.
        visitor: name of the visitor; an empty one has no limit.
        seconds: estimated duration; 0 if unknown.
        status: current status.
        preview: latest preview; None before the first.
        result: written files; None until the job is done.
        error: one-line message if the job failed, else empty.
        stopping: whether the job must stop.
    """

    request: DrawRequest
    visitor: str = ""
    seconds: float = 0.0
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

    def end(self, status: Status, error: str = "") -> None:
        """Set the final status."""
        self.status, self.error = status, error
        self._ended.set()


class JobQueue:
    """Queue that runs one job at a time, first come, first served; call `open` before the first one.

    Args:
        start: function that starts a drawing process; its argument is whether this is the first one.
        root: folder for the jobs' numbered folders.
        limits: limits on requests and on the queue.

    Attributes:
        cost: cost of drawing, which limits requests; None for no such limit.
        restarting: whether the process is being started again.
        failure: why the process cannot be started again; empty while it can.
        broken: event that is set with `failure`.
    """

    def __init__(self, start: Callable[[bool], DrawingProcess], root: Path, limits: Limits | None = None):
        self.start = start
        self.root = root
        self.limits = limits or Limits()
        self.cost: DrawingCost | None = None
        self.restarting = False
        self.failure = ""
        self.broken = threading.Event()
        self._jobs: list[Job] = []  # those that have not ended; the first one is running
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._process: DrawingProcess | None = None
        self._supervisor = threading.Thread(target=self._supervise, name="job queue", daemon=True)

    def open(self) -> Any:
        """Start the drawing process, and return what it tells about the model; raise ValueError if it cannot load."""
        self._process = self.start(True)
        facts, problem = self._wait_until_open(self._process)
        if problem:
            raise ValueError(problem)
        self._supervisor.start()
        return facts

    def submit(self, request: DrawRequest, visitor: str = "") -> Job:
        """Queue a request and return its job.

        Args:
            request: request to carry out.
            visitor: name of the visitor, whose number of requests is limited; empty for no limit.

        Returns:
            The job.

        Raises:
            ValueError: the request exceeds the limits, the queue is full, or the server has ended.
        """
        check(request, self.limits)
        seconds = check_cost(request, self.cost, self.limits).seconds if self.cost is not None else 0.0
        self._check_disk()
        job = Job(request, visitor, seconds)
        with self._changed:
            if self._closed.is_set() or self.failure:
                raise ValueError(self.failure or "the server has been stopped: start it again")
            own = sum(other.visitor == visitor for other in self._jobs)
            if visitor and own >= self.limits.per_visitor:
                raise ValueError(f"{own} of your requests are in the queue: wait for them, or cancel one")
            if len(self._jobs) > self.limits.queued:
                raise ValueError(f"the queue is full with {self.limits.queued} waiting requests: try again later")
            self._jobs.append(job)
            self._changed.notify_all()
        return job

    def jobs_ahead(self, job: Job) -> int:
        """Return the number of jobs that must end before this one starts."""
        with self._changed:
            return self._jobs.index(job) if job in self._jobs else 0

    def seconds_ahead(self, job: Job) -> float:
        """Return the estimated duration of the jobs that must end before this one starts."""
        with self._changed:
            ahead = self._jobs[: self._jobs.index(job)] if job in self._jobs else []
        return sum(other.seconds for other in ahead)

    def stop(self, job: Job) -> None:
        """Cancel a waiting job immediately, or stop a running one within a second."""
        job.stopping = True
        with self._changed:
            if job in self._jobs and job.status == "waiting":
                self._jobs.remove(job)
                job.end("stopped")

    def close(self) -> None:
        """End the drawing process at once, and stop all jobs."""
        self._closed.set()
        with self._changed:
            self._changed.notify_all()
        if self._process is not None:
            self._process.kill()
        if self._supervisor.is_alive():
            self._supervisor.join(1.0)
        self._end_all("stopped")

    def _supervise(self) -> None:
        """Carry out job after job, and start the process again whenever it has ended."""
        while not self._closed.is_set():
            if self._process is None and not self._restart():
                return
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._closed.is_set())
                job = self._jobs[0] if self._jobs else None
            if job is not None and not self._closed.is_set():
                self._run(job)

    def _run(self, job: Job) -> None:
        """Carry out a job; afterwards it has ended, or the process has, which is then started again for the job."""
        if self._process is None or self._has_ended(self._process):
            self._process = None
            return
        with self._changed:
            if job not in self._jobs:  # it has been stopped
                return
            job.status = "drawing"
        try:
            folder = self._make_folder()
        except OSError as error:
            self._finish(job, "failed", message_for_visitors(error, self.root))
            return
        self._follow(job, self._process, folder)
        if job.status != "done":
            shutil.rmtree(folder, ignore_errors=True)

    def _follow(self, job: Job, process: DrawingProcess, folder: Path) -> None:
        """Let the process draw, and follow its reports until the job has ended."""
        process.draw(job.request, folder)
        started, asked, longest = time.monotonic(), 0.0, PATIENCE * self.limits.seconds
        while not self._closed.is_set():
            now = time.monotonic()
            if job.stopping and not asked:
                process.stop()
                asked = now
            if asked and now - asked > STOP_SECONDS:
                self._give_up(process)
                self._finish(job, "stopped")
                return
            if now - started > longest:
                self._give_up(process)
                limit = format_duration(longest)
                self._finish(job, "failed", f"drawing must end within {limit}, and did not: choose a smaller size")
                return
            try:
                report = process.receive(POLL_SECONDS)
            except EOFError:
                if self._closed.is_set():
                    return
                self._process = None
                reason = process.wait()
                print(f"warning: the drawing process has ended ({reason}) and is started again", flush=True)
                self._finish(job, "failed", f"the drawing process has ended ({reason}): choose a smaller size")
                return
            if report is not None and self._take(job, report):
                return

    def _take(self, job: Job, report: Any) -> bool:
        """Take a report on a job, and return whether it was the last one."""
        if isinstance(report, Preview):
            job.preview = report
            return False
        if isinstance(report, Result):
            job.result = report
            self._finish(job, "done")
        elif isinstance(report, Stopped):
            self._finish(job, "stopped")
        elif isinstance(report, Failure):
            self._finish(job, "failed", report.message)
        return True

    def _finish(self, job: Job, status: Status, error: str = "") -> None:
        with self._changed:
            if job in self._jobs:
                self._jobs.remove(job)
        job.end(status, error)

    def _give_up(self, process: DrawingProcess) -> None:
        """End a process that does not react."""
        self._process = None
        process.kill()
        process.wait()

    def _has_ended(self, process: DrawingProcess) -> bool:
        """Return whether a process that has nothing to do has ended."""
        try:
            process.receive(0)
        except EOFError:
            process.wait()
            return True
        return False

    def _restart(self) -> bool:
        """Start the process again, and return whether it is ready; if it never is, all jobs fail."""
        self.restarting, problem = True, ""
        for _ in range(STARTS):
            process = self._process = self.start(False)
            _, problem = self._wait_until_open(process)
            if self._closed.is_set():
                process.kill()
                return False
            if not problem:
                self.restarting = False
                return True
        self._process = None
        with self._changed:
            self.failure = problem
        self._end_all("failed", problem)
        self.broken.set()
        return False

    def _wait_until_open(self, process: DrawingProcess) -> tuple[Any, str]:
        """Wait until a process has loaded the model; return its facts, and the problem if it has ended instead."""
        try:
            while not self._closed.is_set():
                message = process.receive(POLL_SECONDS)
                if isinstance(message, Opened):
                    return message.facts, ""
                if isinstance(message, CannotOpen):
                    process.wait()
                    return None, message.message
        except EOFError:
            return None, f"the drawing process ended while it loaded the model ({process.wait()}): see above"
        return None, ""

    def _end_all(self, status: Status, error: str = "") -> None:
        with self._changed:
            jobs, self._jobs = self._jobs, []
        for job in jobs:
            job.end(status, error)

    def _check_disk(self) -> None:
        """Raise ValueError if the disk is nearly full."""
        place = next(folder for folder in (self.root, *self.root.absolute().parents) if folder.exists())
        free = shutil.disk_usage(place).free
        if free < self.limits.free_megabytes * 2**20:
            raise ValueError(f"the disk of the server is nearly full, {format_bytes(free)} are free: try again later")

    def _make_folder(self) -> Path:
        """Create a folder named by the next free number."""
        self.root.mkdir(parents=True, exist_ok=True)
        taken = [int(path.name) for path in self.root.iterdir() if path.name.isdecimal()]
        for number in count(max(taken, default=0) + 1):
            folder = self.root / f"{number:04d}"
            try:
                folder.mkdir()
            except FileExistsError:  # another server with the same folder
                continue
            return folder
        raise AssertionError("numbers never end")
