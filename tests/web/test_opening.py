"""Loading the model in the drawing process: with the options of the command, and the packages that it trusts."""

import shlex
from functools import partial

import pytest
from small_run import small_run

from asyncdiff.cli import trusted_packages
from asyncdiff.cli.commands.serve import _build_options
from asyncdiff.cli.jobs.serve import Opening
from asyncdiff.web.draw_request import DrawRequest
from asyncdiff.web.limits import Limits
from asyncdiff.web.request_cost import check_cost, estimate


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
