"""Job queue without the page: jobs run the command that is shown, one at a time, and can be stopped."""

import shlex
import threading
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_run import small_run

from asyncdiff.__main__ import main
from asyncdiff.cli import train as cli
from asyncdiff.cli.jobs.serve import Planner
from asyncdiff.tasks import State
from asyncdiff.tasks.photos import collect_warnings, read_photo, warn
from asyncdiff.web.draw_request import DrawRequest
from asyncdiff.web.job_queue import PREVIEW_INTERVAL, JobQueue
from asyncdiff.web.limits import Limits

PHOTO = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PAINT = torch.tensor([0, 0, 128, 128, 200, 200, 255, 255], dtype=torch.uint8).expand(8, 8).contiguous()


@pytest.fixture(scope="module")
def planner(tmp_path_factory):
    run = small_run(tmp_path_factory.mktemp("small"))
    options = SimpleNamespace(device="cpu", weights="auto", codec=None)
    return Planner.load(run / "checkpoints" / "last.ckpt", options)


@pytest.fixture
def queue(planner, tmp_path):
    queue = JobQueue(planner, tmp_path / "drawn")
    yield queue
    queue.close()


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
        return torch.zeros(1, 1, 2, 2)


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
    queue = JobQueue(plan, tmp_path, Limits(queued=2))
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
    queue.close()
    with pytest.raises(ValueError, match="the server has been stopped: start it again"):
        queue.submit(DrawRequest())


def test_a_stopped_job_takes_at_most_one_more_step(tmp_path):
    plan = FakePlan(count=100, pause=0.005)
    queue = JobQueue(plan, tmp_path)
    job = queue.submit(DrawRequest())
    plan.gate.set()
    until(lambda: plan.drawings and plan.drawings[0].taken >= 3)
    queue.stop(job)
    taken = plan.drawings[0].taken
    assert job.wait(30)
    assert plan.drawings[0].taken <= taken + 1
    assert job.status == "stopped"
    queue.close()


def test_at_most_ten_previews_per_second(tmp_path):
    plan = FakePlan(count=120, pause=0.004, gate=None)
    queue = JobQueue(plan, tmp_path)
    started = time.monotonic()
    assert queue.submit(DrawRequest()).wait(30)
    seconds = time.monotonic() - started
    assert seconds >= 0.48
    assert 2 <= plan.drawings[0].shown <= seconds / PREVIEW_INTERVAL + 2
    queue.close()


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

    queue = JobQueue(plan, tmp_path)
    broken, next_one = queue.submit(DrawRequest()), queue.submit(DrawRequest(seed=1))
    assert next_one.wait(30)
    assert (broken.status, broken.error) == ("failed", "KeyError: see the server's terminal for details")
    assert next_one.result.notes == ["a note"]
    queue.close()
    assert "KeyError: 'a bug'" in capsys.readouterr().err


def test_closing_stops_running_and_waiting_jobs(tmp_path):
    plan = FakePlan(count=1000, pause=0.01)
    queue = JobQueue(plan, tmp_path)
    jobs = [queue.submit(DrawRequest(seed=seed)) for seed in range(3)]
    plan.gate.set()
    until(lambda: plan.seeds)
    queue.close()
    assert [job.status for job in jobs] == ["stopped"] * 3
    assert plan.seeds == [0]
