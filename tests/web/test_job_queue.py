"""Jobs without a page: what is run is the line that is shown, one at a time, and stops when it is told to."""

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
from asyncdiff.cli.commands.serve import Planner
from asyncdiff.tasks import State
from asyncdiff.tasks.photos import collected, read_photo, warn
from asyncdiff.web.draw_request import DrawRequest, Limits
from asyncdiff.web.job_queue import LOOKS, JobQueue

PHOTO = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PAINTED = torch.tensor([0, 0, 128, 128, 200, 200, 255, 255], dtype=torch.uint8).expand(8, 8).contiguous()


@pytest.fixture(scope="module")
def planner(tmp_path_factory):
    run = small_run(tmp_path_factory.mktemp("small"))
    options = SimpleNamespace(device="cpu", weights="auto", codec=None)
    return Planner(run / "checkpoints" / "last.ckpt", options)


@pytest.fixture
def studio(planner, tmp_path):
    studio = JobQueue(planner, tmp_path / "drawn")
    yield studio
    studio.close()


def finished(studio, wish):
    job = studio.submit(wish)
    assert job.wait(60)
    assert (job.where, job.error) == ("done", "")
    return job.result


# With a model


@pytest.mark.parametrize(
    "wish",
    [
        DrawRequest("fill", PHOTO, PAINTED, seed=3, count=2, input_guidance=1.0),
        DrawRequest("fill", PHOTO, PAINTED, order="spiral", overlap=0.5, steps_per_patch=2, label=1, guidance=2.0),
        DrawRequest("change", PHOTO, PAINTED, seed=7, steps=6),
        DrawRequest("change", PHOTO, PAINTED, order="raster", overlap=0.9, steps_per_patch=3),
        DrawRequest("new", count=3, label=2, steps=3),
        DrawRequest("new", size="4x12", order="wavefront", steps_per_patch=1, movie=False),
        DrawRequest("extend", PHOTO, sides=(2, 4, 0, 0)),
        DrawRequest("texture", PHOTO, size="10x14", tileable=True),
        DrawRequest("texture", size="8x10", seed=5),
    ],
    ids=lambda wish: f"{wish.kind}-{wish.order}",
)
def test_the_line_and_the_yaml_that_are_shown_draw_the_same_files(wish, studio, tmp_path):
    result = finished(studio, wish)
    words = shlex.split(result.line)
    assert words[:3] == ["python", "-m", "asyncdiff"]
    main([*words[3:], "--output", str(tmp_path / "again")])
    assert len(result.pictures) == wish.count
    assert (result.movie is not None) == wish.movie
    for file in [*result.pictures, *([result.movie] if result.movie else [])]:
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()
    predicting = result.recorded.read_text().splitlines()[3].removeprefix("#   ")
    words = shlex.split(predicting.replace(" predict.yaml ", f" {result.recorded} "))
    assert words[:3] == ["python", "train.py", "predict"]
    cli.main([*words[2:], "--trainer.default_root_dir", str(tmp_path / "predicted")])
    (folder,) = (tmp_path / "predicted" / "predictions").iterdir()
    for file in result.pictures:
        assert (folder / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("kind", ["fill", "change"])
@pytest.mark.parametrize("order", ["together", "spiral"])
def test_what_is_not_painted_stays_bit_for_bit(kind, order, studio):
    result = finished(studio, DrawRequest(kind, PHOTO, PAINTED, order=order, steps_per_patch=2))
    drawn = read_photo(result.pictures[0], 3)
    assert torch.equal(drawn[:, :, :2], PHOTO[:, :, :2])
    assert (drawn != PHOTO)[:, :, 2:].float().mean() > 0.5
    levels = PAINTED[0, ::2] / 255 if kind == "change" else torch.tensor([0.0, 1, 1, 1])
    assert torch.equal(studio_levels(studio, kind, order)[0, :, :], levels.expand(4, 4))


def studio_levels(studio, kind, order):
    """The level map that a drawing of the wish starts from."""
    folder = studio.root / f"{kind}-{order}"
    folder.mkdir()
    drawing, _ = studio.plan(DrawRequest(kind, PHOTO, PAINTED, order=order, steps_per_patch=2), folder)
    return next(iter(drawing.steps())).state.t


def test_a_wish_leaves_nothing_of_itself_to_the_next(studio):
    before = finished(studio, DrawRequest("new", label=1)).pictures[0].read_bytes()
    guided = finished(studio, DrawRequest("new", label=1, steps=9, guidance=3.0)).pictures[0].read_bytes()
    after = finished(studio, DrawRequest("new", label=1)).pictures[0].read_bytes()
    assert before == after != guided


def test_the_last_look_is_the_picture(studio):
    job = studio.submit(DrawRequest("fill", PHOTO, PAINTED, steps=5))
    assert job.wait(60)
    assert (job.look.done, job.look.total) == (5, 5)
    assert torch.equal(job.look.images[0], read_photo(job.result.pictures[0], 3))
    assert torch.equal(job.look.levels, torch.zeros(1, 4, 4))


def test_a_mistake_is_a_line_and_the_next_wish_is_drawn(studio):
    job = studio.submit(DrawRequest("new", label=7))
    assert job.wait(60)
    assert (job.where, job.error) == ("failed", "labels must lie in 0 .. 2, got 7")
    assert finished(studio, DrawRequest("new"))


def test_a_walk_is_stopped_in_its_midst(studio):
    job = studio.submit(DrawRequest("new", size="64x64", steps=1000))
    while job.look is None and not job.wait(0.01):
        pass
    studio.stop(job)
    started = time.monotonic()
    assert job.wait(30)
    assert time.monotonic() - started < 5
    assert (job.where, job.result) == ("stopped", None)
    assert job.look.done < 1000
    assert not list(studio.root.rglob("*.png"))


# With a plan whose steps are watched


@dataclass
class Walk:
    """A drawing of `count` steps that goes on when `gate` allows it, and says what was asked of it."""

    folder: Path
    count: int = 5
    pause: float = 0.0
    gate: threading.Event | None = None
    taken: int = 0
    shown: int = 0
    filmed = False
    movie = Path("walk.gif")
    recorded = Path("predict.yaml")
    requests = ()

    def steps(self):
        for k in range(self.count):
            if self.gate is not None:
                assert self.gate.wait(30)
            self.taken += 1
            time.sleep(self.pause)
            yield SimpleNamespace(state=State(self._show, None, k, self.count), done=k, total=self.count)

    def _show(self):
        self.shown += 1
        return torch.zeros(1, 1, 2, 2)


class Plans:
    """Walks that wait for `gate`; the wishes in the order that they were planned, and how many were at once."""

    def __init__(self, **walk):
        self.gate = threading.Event()
        self.walk = {"gate": self.gate, **walk}
        self.walks = []
        self.seeds = []

    def __call__(self, wish, folder):
        self.seeds.append(wish.seed)
        self.walks.append(Walk(folder, **self.walk))
        return self.walks[-1], "line"


def until(condition):
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never came")


def test_one_at_a_time_in_order_and_who_waits_may_leave(tmp_path):
    plans = Plans()
    studio = JobQueue(plans, tmp_path, Limits(waiting=2))
    first, second, third = (studio.submit(DrawRequest(seed=seed)) for seed in (1, 2, 3))
    until(lambda: first.where == "drawing")
    assert [studio.before(job) for job in (first, second, third)] == [0, 1, 2]
    with pytest.raises(ValueError, match="at most 2 wishes may wait, got one more: try again in a while"):
        studio.submit(DrawRequest(seed=4))
    studio.stop(second)
    assert second.ended
    assert second.where == "stopped"
    assert studio.before(third) == 1
    assert (first.where, third.where) == ("drawing", "waiting")
    assert plans.seeds == [1]
    plans.gate.set()
    assert third.wait(30)
    assert plans.seeds == [1, 3]
    assert [job.where for job in (first, second, third)] == ["done", "stopped", "done"]
    assert [walk.folder.name for walk in plans.walks] == ["0001", "0002"]
    studio.close()
    with pytest.raises(ValueError, match="the server must be running, got one that is closed"):
        studio.submit(DrawRequest())


def test_stopping_lets_one_more_step_happen_at_most(tmp_path):
    plans = Plans(count=100, pause=0.005)
    studio = JobQueue(plans, tmp_path)
    job = studio.submit(DrawRequest())
    plans.gate.set()
    until(lambda: plans.walks and plans.walks[0].taken >= 3)
    studio.stop(job)
    taken = plans.walks[0].taken
    assert job.wait(30)
    assert plans.walks[0].taken <= taken + 1
    assert job.where == "stopped"
    studio.close()


def test_no_more_than_ten_looks_a_second(tmp_path):
    plans = Plans(count=120, pause=0.004, gate=None)
    studio = JobQueue(plans, tmp_path)
    started = time.monotonic()
    assert studio.submit(DrawRequest()).wait(30)
    seconds = time.monotonic() - started
    assert seconds >= 0.48
    assert 2 <= plans.walks[0].shown <= seconds / LOOKS + 2
    studio.close()


def test_notes_are_of_the_thread_whose_photo_it_is(tmp_path):
    """What one visitor's upload is told about does not end up beside another's picture."""
    with collected() as mine:
        thread = threading.Thread(target=lambda: warnings.simplefilter("ignore") or warn("of another"))
        thread.start()
        thread.join()
        warn("mine")
    assert mine == ["mine"]


def test_a_bug_is_told_to_whoever_started_the_server(tmp_path, capsys):
    def plan(wish, folder):
        if wish.seed == 0:
            raise KeyError("a bug")
        warn("a note")
        return Walk(folder), "line"

    studio = JobQueue(plan, tmp_path)
    broken, next_one = studio.submit(DrawRequest()), studio.submit(DrawRequest(seed=1))
    assert next_one.wait(30)
    assert (broken.where, broken.error) == ("failed", "KeyError: the terminal of the server tells more")
    assert next_one.result.notes == ["a note"]
    studio.close()
    assert "KeyError: 'a bug'" in capsys.readouterr().err


def test_closing_stops_what_is_drawn_and_what_waits(tmp_path):
    plans = Plans(count=1000, pause=0.01)
    studio = JobQueue(plans, tmp_path)
    jobs = [studio.submit(DrawRequest(seed=seed)) for seed in range(3)]
    plans.gate.set()
    until(lambda: jobs[0].where == "drawing")
    studio.close()
    assert [job.where for job in jobs] == ["stopped"] * 3
    assert plans.seeds == [0]
