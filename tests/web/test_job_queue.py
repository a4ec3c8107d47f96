"""Job queue without the page: jobs run the command that is shown, one at a time, and can be stopped."""

import errno
import os
import re
import shlex
import threading
import time
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from drawing_processes import LoadsOnce, ThreadProcess, open_hostile
from small_run import small_run

from asyncdiff.__main__ import main
from asyncdiff.cli import train as cli
from asyncdiff.cli.jobs.serve import Planner
from asyncdiff.tasks import State
from asyncdiff.tasks.photos import collect_warnings, read_photo, warn
from asyncdiff.web.draw_request import DrawRequest
from asyncdiff.web.drawing import PREVIEW_INTERVAL, PREVIEW_SIDE
from asyncdiff.web.drawing_process import DrawingProcess
from asyncdiff.web.job_queue import JobQueue
from asyncdiff.web.limits import Limits

PHOTO = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PAINT = torch.tensor([0, 0, 128, 128, 200, 200, 255, 255], dtype=torch.uint8).expand(8, 8).contiguous()


@pytest.fixture(scope="module")
def planner(tmp_path_factory):
    run = small_run(tmp_path_factory.mktemp("small"))
    options = SimpleNamespace(device="cpu", weights="auto", codec=None, precision=None)
    return Planner.load(run / "checkpoints" / "last.ckpt", options)


@contextmanager
def queue_of(plan, root, limits=None):
    """Queue whose drawing process is a thread."""
    queue = JobQueue(lambda first: ThreadProcess(plan), root, limits)
    queue.open()
    yield queue
    queue.close()


@pytest.fixture
def queue(planner, tmp_path):
    with queue_of(planner, tmp_path / "drawn") as queue:
        queue.plan = planner
        yield queue


def submit_and_wait(queue, request):
    job = queue.submit(request)
    assert job.wait(60)
    assert (job.status, job.error) == ("done", "")
    return job.result


# With a model


@pytest.mark.parametrize(
    "draw_request",
    [
        DrawRequest("fill", PHOTO, PAINT, seed=3, count=2, input_guidance=1.0),
        DrawRequest("fill", PHOTO, PAINT, order="spiral", overlap=0.5, steps_per_patch=2, label=1, guidance=2.0),
        DrawRequest("change", PHOTO, PAINT, seed=7, steps=6),
        DrawRequest("change", PHOTO, PAINT, order="raster", overlap=0.9, steps_per_patch=3),
        DrawRequest("new", count=3, label=2, steps=3),
        DrawRequest("new", size="4x12", order="wavefront", steps_per_patch=1, movie=False),
        DrawRequest("extend", PHOTO, sides=(2, 4, 0, 0)),
        DrawRequest("texture", PHOTO, size="10x14", tileable=True),
        DrawRequest("texture", size="8x10", seed=5),
    ],
    ids=lambda request: f"{request.kind}-{request.order}",
)
def test_the_command_and_the_yaml_file_reproduce_the_images(draw_request, queue, tmp_path):
    result = submit_and_wait(queue, draw_request)
    argv = shlex.split(result.command)
    assert argv[:3] == ["python", "-m", "asyncdiff"]
    main([*argv[3:], "--output", str(tmp_path / "again")])
    assert len(result.images) == draw_request.count
    assert (result.gif is not None) == draw_request.movie
    for file in [*result.images, *([result.gif] if result.gif else [])]:
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()
    predicting = result.record.read_text().splitlines()[3].removeprefix("#   ")
    argv = shlex.split(predicting.replace(" predict.yaml ", f" {result.record} "))
    assert argv[:3] == ["python", "train.py", "predict"]
    cli.main([*argv[2:], "--trainer.default_root_dir", str(tmp_path / "predicted")])
    (folder,) = (tmp_path / "predicted" / "predictions").iterdir()
    for file in result.images:
        assert (folder / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("kind", ["fill", "change"])
@pytest.mark.parametrize("order", ["together", "spiral"])
def test_unpainted_pixels_are_kept_bit_for_bit(kind, order, queue):
    result = submit_and_wait(queue, DrawRequest(kind, PHOTO, PAINT, order=order, steps_per_patch=2))
    drawn = read_photo(result.images[0], 3)
    assert torch.equal(drawn[:, :, :2], PHOTO[:, :, :2])
    assert (drawn != PHOTO)[:, :, 2:].float().mean() > 0.5
    levels = PAINT[0, ::2] / 255 if kind == "change" else torch.tensor([0.0, 1, 1, 1])
    assert torch.equal(start_levels(queue, kind, order)[0, :, :], levels.expand(4, 4))


def start_levels(queue, kind, order):
    """Level map that sampling starts from."""
    folder = queue.root / f"{kind}-{order}"
    folder.mkdir()
    drawing, _ = queue.plan(DrawRequest(kind, PHOTO, PAINT, order=order, steps_per_patch=2), folder)
    return next(iter(drawing.steps())).t


def test_a_request_does_not_affect_the_next_one(queue):
    before = submit_and_wait(queue, DrawRequest("new", label=1)).images[0].read_bytes()
    guided = submit_and_wait(queue, DrawRequest("new", label=1, steps=9, guidance=3.0)).images[0].read_bytes()
    after = submit_and_wait(queue, DrawRequest("new", label=1)).images[0].read_bytes()
    assert before == after != guided


def test_the_last_preview_shows_the_final_image(queue):
    job = queue.submit(DrawRequest("fill", PHOTO, PAINT, steps=5))
    assert job.wait(60)
    assert (job.preview.done, job.preview.total) == (5, 5)
    assert torch.equal(job.preview.images[0], read_photo(job.result.images[0], 3))
    assert torch.equal(job.preview.levels, torch.zeros(1, 4, 4))


def test_an_invalid_request_fails_in_one_line_and_the_queue_continues(queue):
    job = queue.submit(DrawRequest("new", label=7))
    assert job.wait(60)
    assert (job.status, job.error) == ("failed", "labels must lie in 0 .. 2, got 7")
    assert submit_and_wait(queue, DrawRequest("new"))


def test_a_running_job_is_stopped(queue):
    job = queue.submit(DrawRequest("new", size="64x64", steps=1000))
    while job.preview is None and not job.wait(0.01):
        pass
    queue.stop(job)
    started = time.monotonic()
    assert job.wait(30)
    assert time.monotonic() - started < 5
    assert (job.status, job.result) == ("stopped", None)
    assert job.preview.done < 1000
    assert not list(queue.root.rglob("*.png"))


# With a fake plan that records its steps


@dataclass
class FakeDrawing:
    """Fake drawing of `count` steps that waits for `gate` before each, and counts its steps and previews."""

    folder: Path
    count: int = 5
    pause: float = 0.0
    size: tuple[int, int] = (2, 2)
    gate: threading.Event | None = None
    taken: int = 0
    shown: int = 0
    movie = None
    record_file = Path("predict.yaml")
    requests = ()

    def steps(self):
        for k in range(self.count):
            if self.gate is not None:
                assert self.gate.wait(30)
            self.taken += 1
            time.sleep(self.pause)
            yield State(self._show, None, k, self.count)

    def _show(self):
        self.shown += 1
        return torch.zeros(1, 1, *self.size)


class FakePlan:
    """Fake plan: its drawings wait for `gate`; records the seeds of the requests in the order they were planned."""

    def __init__(self, **options):
        self.gate = threading.Event()
        self.options = {"gate": self.gate, **options}
        self.drawings = []
        self.seeds = []

    def __call__(self, request, folder):
        self.seeds.append(request.seed)
        self.drawings.append(FakeDrawing(folder, **self.options))
        return self.drawings[-1], "line"


def until(condition):
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("timed out")


def test_jobs_run_one_at_a_time_in_order_and_waiting_ones_can_be_cancelled(tmp_path):
    plan = FakePlan()
    with queue_of(plan, tmp_path, Limits(queued=2)) as queue:
        first, second, third = (queue.submit(DrawRequest(seed=seed)) for seed in (1, 2, 3))
        until(lambda: plan.seeds == [1])
        assert [queue.jobs_ahead(job) for job in (first, second, third)] == [0, 1, 2]
        with pytest.raises(ValueError, match="the queue is full with 2 waiting requests: try again later"):
            queue.submit(DrawRequest(seed=4))
        queue.stop(second)
        assert second.ended
        assert second.status == "stopped"
        assert queue.jobs_ahead(third) == 1
        assert (first.status, third.status) == ("drawing", "waiting")
        assert plan.seeds == [1]  # one at a time
        plan.gate.set()
        assert third.wait(30)
        assert plan.seeds == [1, 3]
        assert [job.status for job in (first, second, third)] == ["done", "stopped", "done"]
        assert [drawing.folder.name for drawing in plan.drawings] == ["0001", "0002"]
    with pytest.raises(ValueError, match="the server has been stopped: start it again"):
        queue.submit(DrawRequest())


def test_one_visitor_cannot_fill_the_queue(tmp_path):
    plan = FakePlan()
    with queue_of(plan, tmp_path, Limits(per_visitor=2)) as queue:
        mine = [queue.submit(DrawRequest(), "me") for _ in range(2)]
        with pytest.raises(ValueError, match="2 of your requests are in the queue: wait for them, or cancel one"):
            queue.submit(DrawRequest(), "me")
        other = queue.submit(DrawRequest(), "you")
        queue.stop(mine[1])
        queue.submit(DrawRequest(), "me")
        plan.gate.set()
        assert other.wait(30)


def test_a_full_disk_is_refused(tmp_path):
    with queue_of(FakePlan(gate=None), tmp_path / "not" / "there", Limits(free_megabytes=2**40)) as queue:
        with pytest.raises(ValueError, match="the disk of the server is nearly full, .* are free: try again later"):
            queue.submit(DrawRequest())
        assert not (tmp_path / "not").exists()


def test_a_stopped_job_takes_at_most_one_more_step_and_leaves_no_folder(tmp_path):
    plan = FakePlan(count=100, pause=0.005)
    with queue_of(plan, tmp_path) as queue:
        job = queue.submit(DrawRequest())
        plan.gate.set()
        until(lambda: job.preview is not None)
        queue.stop(job)
        assert job.wait(30)
        until(lambda: not list(tmp_path.iterdir()))
        assert plan.drawings[0].taken < 100
        assert job.status == "stopped"


def test_at_most_ten_previews_per_second_of_limited_size(tmp_path):
    plan = FakePlan(count=120, pause=0.004, gate=None, size=(2 * PREVIEW_SIDE, PREVIEW_SIDE // 8))
    with queue_of(plan, tmp_path) as queue:
        started = time.monotonic()
        job = queue.submit(DrawRequest())
        assert job.wait(30)
        seconds = time.monotonic() - started
        assert seconds >= 0.48
        assert 2 <= plan.drawings[0].shown <= seconds / PREVIEW_INTERVAL + 2
        assert job.preview.images.shape == (1, 1, PREVIEW_SIDE, PREVIEW_SIDE // 16)


def test_notes_are_collected_per_thread(tmp_path):
    """Notes about one visitor's upload do not appear with another's."""
    with collect_warnings() as mine:
        thread = threading.Thread(target=lambda: warnings.simplefilter("ignore") or warn("from another thread"))
        thread.start()
        thread.join()
        warn("mine")
    assert mine == ["mine"]


def test_the_traceback_of_a_bug_is_printed_in_the_terminal(tmp_path, capsys):
    def plan(request, folder):
        if request.seed == 0:
            raise KeyError("a bug")
        warn("a note")
        return FakeDrawing(folder), "line"

    with queue_of(plan, tmp_path) as queue:
        broken, next_one = queue.submit(DrawRequest()), queue.submit(DrawRequest(seed=1))
        assert next_one.wait(30)
        assert (broken.status, broken.error) == ("failed", "KeyError: see the server's terminal for details")
        assert next_one.result.notes == ["a note"]
    assert "KeyError: 'a bug'" in capsys.readouterr().err


def test_errors_of_the_system_do_not_show_its_folders(tmp_path):
    def plan(request, folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))

    (tmp_path / "file").touch()
    for root, reason in ((tmp_path / "root", "No space left on device"), (tmp_path / "file", "File exists")):
        with queue_of(plan, root) as queue:
            job = queue.submit(DrawRequest())
            assert job.wait(30)
            assert job.error == f"the server cannot write the images: {reason}"


def test_errors_and_notes_do_not_show_the_folders_of_the_server(tmp_path):
    def plan(request, folder):
        if request.seed == 0:
            raise OSError(f"cannot write {folder}/pictures/a.png: it is not of /home/me/runs/last.ckpt")
        warn(f"{folder}/photo.png: cropped 1/2 and 3/4/5")
        return FakeDrawing(folder), "line"

    with queue_of(plan, tmp_path / "a folder") as queue:
        broken, noted = queue.submit(DrawRequest()), queue.submit(DrawRequest(seed=1))
        assert noted.wait(30)
        assert broken.error == "cannot write pictures/a.png: it is not of last.ckpt"
        assert noted.result.notes == ["photo.png: cropped 1/2 and 3/4/5"]


def test_a_job_that_waits_for_the_process_to_load_is_cancelled_at_once(tmp_path):
    plan, may_load = FakePlan(gate=None), threading.Event()

    def start(first):
        assert first or may_load.wait(30)
        return ThreadProcess(plan)

    queue = JobQueue(start, tmp_path)
    queue.open()
    queue._process.kill()
    jobs = [queue.submit(DrawRequest(seed=seed)) for seed in range(3)]
    until(lambda: queue.restarting)
    for job in jobs[:2]:
        queue.stop(job)
        assert (job.ended, job.status) == (True, "stopped")
    may_load.set()
    assert jobs[2].wait(30)
    queue.close()
    assert plan.seeds == [2]


def test_closing_stops_running_and_waiting_jobs(tmp_path):
    plan = FakePlan(count=1000, pause=0.01)
    with queue_of(plan, tmp_path) as queue:
        jobs = [queue.submit(DrawRequest(seed=seed)) for seed in range(3)]
        plan.gate.set()
        until(lambda: plan.seeds)
    assert [job.status for job in jobs] == ["stopped"] * 3
    assert plan.seeds == [0]


# With a process


@contextmanager
def queue_of_processes(opening, root, limits=None):
    queue = JobQueue(partial(start, opening), root, limits)
    try:
        yield queue
    finally:
        queue.close()


def start(opening, first):
    return DrawingProcess(opening, first=first)


@pytest.mark.slow
def test_a_step_that_never_ends_is_cancelled_and_the_next_job_is_done(tmp_path):
    with queue_of_processes(open_hostile, tmp_path) as queue:
        pid = queue.open()
        hanging, following = queue.submit(DrawRequest(seed=1)), queue.submit(DrawRequest(seed=0))
        until(lambda: hanging.preview is not None)
        queue.stop(hanging)
        asked = time.monotonic()
        assert hanging.wait(30)
        assert hanging.status == "stopped"
        assert time.monotonic() - asked < 10  # about one second on an idle machine
        until(lambda: not alive(pid))
        assert following.wait(120)
        assert (following.status, following.error) == ("done", "")
        assert not queue.restarting
        assert [folder.name for folder in tmp_path.iterdir()] == ["0001"]


@pytest.mark.slow
def test_a_job_that_takes_too_long_is_ended(tmp_path):
    with queue_of_processes(open_hostile, tmp_path, Limits(seconds=0.5)) as queue:
        queue.open()
        job, following = queue.submit(DrawRequest(seed=1)), queue.submit(DrawRequest(seed=0))
        assert job.wait(60)
        assert job.error == "drawing must end within 1 s, and did not: choose a smaller size"
        assert following.wait(120)
        assert following.status == "done"


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "reason"), [(2, "ended by SIGKILL"), (3, "exit code 7")])
def test_a_process_that_crashes_fails_only_its_job(seed, reason, tmp_path):
    with queue_of_processes(open_hostile, tmp_path) as queue:
        queue.open()
        job, following = queue.submit(DrawRequest(seed=seed)), queue.submit(DrawRequest(seed=0))
        assert job.wait(60)
        assert (job.status, job.error) == (
            "failed",
            f"the drawing process has ended ({reason}): choose a smaller size",
        )
        assert following.wait(120)
        assert following.status == "done"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("error", "the checkpoint is gone"),
        ("killed", "the drawing process ended while it loaded the model (ended by SIGKILL): see above"),
    ],
)
def test_a_process_that_cannot_load_again_ends_the_queue(how, message, tmp_path):
    with queue_of_processes(LoadsOnce(how), tmp_path) as queue:
        queue.open()
        jobs = [queue.submit(DrawRequest(seed=seed)) for seed in (2, 0)]
        assert queue.broken.wait(120)
        assert queue.failure == message
        assert [job.status for job in jobs] == ["failed"] * 2
        assert jobs[1].error == message
        with pytest.raises(ValueError, match=re.escape(message)):
            queue.submit(DrawRequest())


@pytest.mark.slow
def test_a_process_that_never_loads_is_reported(tmp_path):
    with (
        queue_of_processes(LoadsOnce("never"), tmp_path) as queue,
        pytest.raises(ValueError, match="the checkpoint is gone"),
    ):
        queue.open()


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
