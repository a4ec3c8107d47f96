"""Loading the model in the drawing process: with the options of the command, and the packages that it trusts."""

import shlex
from dataclasses import replace
from functools import partial

import pytest
import torch
from small_run import small_run
from small_runs import small_dit

from asyncdiff import DiffusionModel
from asyncdiff.cli import trusted_packages
from asyncdiff.cli.commands.serve import _build_options
from asyncdiff.cli.jobs.serve import Opening, measure_cost
from asyncdiff.noise import Raster
from asyncdiff.sampling import Adaptive, Autoregressive, Heun, RePaint, Sampler, Sequential, Tolerance
from asyncdiff.tasks.drawing_cost import PREVIEWS, EvaluationCost, Measurement
from asyncdiff.tasks.measured_cost import count_evaluations
from asyncdiff.web.draw_request import DrawRequest
from asyncdiff.web.limits import Limits
from asyncdiff.web.model_info import model_info
from asyncdiff.web.request_cost import check_cost, estimate

FLAT = EvaluationCost([Measurement(128, 1.0, 1.0, 1.0)])  # a second for an image of 16x8 pixels


def opening(run, *options, trusted=()):
    argv = [str(run), "--device", "cpu", "--examples", "none", *options]
    checkpoint = run / "checkpoints" / "last.ckpt"
    return Opening(partial(_build_options, argv), checkpoint, (), trusted, "small", Limits())


def test_packages_are_trusted_while_the_process_draws(tmp_path):
    trusted = ("--allow-class-paths", "mylab,other.networks")
    with opening(small_run(tmp_path), trusted=trusted)(False) as (planner, facts):
        assert facts is None
        assert trusted_packages.user_trusted() == ("mylab", "other.networks")
        _, command = planner(DrawRequest("new"), tmp_path)
    assert trusted_packages.user_trusted() == ()
    assert shlex.split(command)[-2:] == list(trusted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "cuda:77"], "--device cuda:77 is not available on this machine: use cpu"),
        (["--weights", "ema"], "has no EMA weights"),
        (["--codec", "os.PathLike"], "must name a class of asyncdiff"),
    ],
)
def test_user_errors_are_one_line(options, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error, opening(small_run(tmp_path), *options)(False):
        pass
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "sampler",
    [
        Sampler(solver=Heun(), steps=4),
        Autoregressive(steps_per_patch=1),
        Adaptive(Sequential(), steps=2),
        Adaptive(Tolerance(), steps=4),
        RePaint(steps=12, jump=4, resamples=3, hold=True),
    ],
    ids=lambda sampler: type(getattr(sampler, "step_rule", sampler)).__name__,
)
def test_the_evaluations_of_every_sampler_are_counted(sampler, monkeypatch):
    """Whether their number depends on steps, on patches or on guidance; here for an image of twice the area."""
    monkeypatch.setattr("asyncdiff.cli.jobs.serve.measure_network", lambda model: FLAT)
    model = DiffusionModel.assemble(small_dit(3, 3, uncertainty=True), sampler=sampler, image_size=8)
    info = model_info(model, "small")
    cost = measure_cost(model, info)
    assert (info.steps is None) == isinstance(sampler, Autoregressive)
    image, known = torch.zeros(3, 16, 8), torch.zeros(16, 8, dtype=torch.bool)
    with count_evaluations(model) as counts:
        model.inpaint(image, known)
    assert sum(counts) == pytest.approx(evaluations(cost, info.steps), rel=0.1)
    ordered = Autoregressive(Raster(), solver=sampler.solver, steps_per_patch=2)
    with count_evaluations(model) as counts:
        model.inpaint(image, known, sampler=ordered)
    estimated = evaluations(cost, ordered.num_steps((8, 4)), ordered=True)
    assert 0.7 * estimated < sum(counts) <= estimated  # the last step of a patch may take one evaluation less
    assert (cost.class_guidance, cost.input_guidance) == (2.0, 2.0)


def evaluations(cost, steps, **options):
    return replace(cost, pixel=0.0).together((16, 8), steps=steps, **options).seconds / PREVIEWS


def test_a_model_is_measured_and_its_largest_picture_refused(tmp_path):
    """New picture of 1024x1024 from a model of 8x8 pixels in patches of 2x2: attention over 262,144 patches."""
    with opening(small_run(tmp_path), "--examples", "drawn")(True) as (_, (info, examples, cost)):
        assert info == ("small", 3, (8, 8), (2, 2), 3, 4, True)
        assert [example.shape for example in examples] == [(3, 8, 8)] * 6
    assert (cost.window, cost.steps, cost.grows, cost.free) == ((8, 8), 4, False, None)
    assert (cost.evaluations, cost.class_guidance, cost.input_guidance) == (1.0, 2.0, 2.0)
    n = 1024**2 // 4
    # Attention takes 4 n^2 dim operations for n patches.
    assert cost.network.work(1024**2) == pytest.approx(4 * n**2 * 32, rel=0.01)
    request = DrawRequest("new", size="1024x1024", steps=1, movie=False)
    needed = estimate(request, cost).seconds
    with pytest.raises(ValueError, match="a request must take at most .* for 1024x1024 with 1 step: choose"):
        check_cost(request, cost, Limits(seconds=needed / 2))
    assert estimate(DrawRequest("new", steps=4), cost).seconds < needed / 1000
