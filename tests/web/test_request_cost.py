"""Cost of requests: estimates never fall when anything grows, and too large requests are refused with what fits."""

import re
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from small_runs import small_dit

from asyncdiff import DiffusionModel
from asyncdiff.denoising import Denoiser
from asyncdiff.noise import RectifiedFlow
from asyncdiff.sampling import Sampler
from asyncdiff.tasks.drawing_cost import DrawingCost, EvaluationCost, Measurement
from asyncdiff.tasks.measured_cost import measure_network
from asyncdiff.web.draw_request import DrawRequest
from asyncdiff.web.limits import Limits
from asyncdiff.web.request_cost import check_cost, estimate, format_duration, largest_size

PHOTO = torch.zeros(3, 8, 8, dtype=torch.uint8)
# A network with attention, measured on 8x8, 16x16 and 32x32 pixels: work = 1000 n + n^2, speed 10^6 per second.
ATTENTION = EvaluationCost(
    [Measurement(n, (1000 * n + n * n) / 1e6, 1000 * n + n * n, 100 * n) for n in (64, 256, 1024)]
)
COST = DrawingCost(
    ATTENTION,
    None,
    window=(8, 8),
    patch=(2, 2),
    factor=1,
    steps=4,
    evaluations=1.0,
    class_guidance=2.0,
    input_guidance=2.0,
    pixel=1e-7,
)


def test_work_is_extended_as_the_polynomial_that_was_counted():
    n = 512**2
    assert ATTENTION.work(n) == pytest.approx(1000 * n + n**2)
    assert ATTENTION.seconds(n) == pytest.approx((1000 * n + n**2) / 1e6)
    assert ATTENTION.seconds(1024, images=3) == pytest.approx(3 * ATTENTION.seconds(1024))
    assert ATTENTION.memory(n) == pytest.approx(100 * n)


@pytest.mark.parametrize("counted", [0, 1000])
def test_work_of_unknown_structure_grows_with_the_square_of_the_area(counted):
    points = (
        [Measurement(64, 0.001, counted, 100)] if counted else [Measurement(n, 0.001, 0, 100 * n) for n in (16, 64)]
    )
    assert EvaluationCost(points).seconds(640) == pytest.approx(0.1)
    assert EvaluationCost(points[-1:]).memory(640) == pytest.approx(100 * points[-1].memory)


def test_noise_in_the_measurements_never_makes_larger_images_cheaper():
    noisy = EvaluationCost([Measurement(n, s, 10 * n, n) for n, s in ((16, 0.5), (64, 0.1), (256, 0.2), (1024, 0.1))])
    assert [noisy.seconds(area) for area in (16, 64, 256, 1024, 2048)] == pytest.approx([0.1] * 4 + [0.2])
    areas = range(16, 5000, 7)
    for smaller, larger in pairwise(areas):
        assert noisy.seconds(smaller) <= noisy.seconds(larger)


@pytest.mark.parametrize(
    "requests",
    [
        [DrawRequest("new", size=f"{side}x{side}") for side in range(2, 1024, 34)],
        [DrawRequest("new", size=f"8x{side}") for side in range(2, 1024, 34)],
        [DrawRequest("texture", size=f"{side}x{side}") for side in range(8, 1024, 34)],
        [DrawRequest("extend", PHOTO, sides=(n, 0, 0, 2)) for n in range(2, 1024, 34)],
        [DrawRequest("new", steps=steps) for steps in range(1, 1000, 111)],
        [DrawRequest("new", count=count) for count in range(1, 7)],
        [DrawRequest("texture", size="16x16", count=count) for count in range(1, 7)],
        [DrawRequest("new", order="raster", steps_per_patch=steps) for steps in range(1, 1000, 111)],
        [DrawRequest("new", order="raster", overlap=overlap) for overlap in (0.95, 0.75, 0.5, 0.0)],
        [DrawRequest("new", order=order) for order in ("together", "spiral")],
        [DrawRequest("new", label=0), DrawRequest("new", label=0, guidance=2.0)],
        [DrawRequest("new", movie=False), DrawRequest("new", movie=True)],
    ],
)
def test_estimates_never_fall_when_a_request_grows(requests):
    for smaller, larger in pairwise(estimate(request, COST) for request in requests):
        assert smaller.seconds <= larger.seconds
        assert smaller.memory <= larger.memory
        assert smaller.host_memory <= larger.host_memory


def test_an_adaptive_sampler_may_take_a_step_per_patch():
    adaptive = replace(COST, grows=True)
    steps = [cost.together((32, 32)).seconds / cost.together((8, 8)).seconds for cost in (adaptive, COST)]
    assert steps[0] == pytest.approx(16 * steps[1], rel=0.01)


@pytest.mark.parametrize(
    ("draw_request", "message"),
    [
        (
            DrawRequest("new", size="1024x1024", steps=1, movie=False),
            r"must take at most 5 min, got about \d+ days for 1024x1024 with 1 step: choose (\d+)x\1 or fewer steps",
        ),
        (DrawRequest("new", size="512x1024"), r"choose (\d+)x(\d+) or fewer steps"),
        (DrawRequest("texture", size="1024x1024", steps=1000), r"choose (\d+)x\1 or fewer steps"),
        (DrawRequest("extend", PHOTO, sides=(50, 50, 0, 0), steps=1000), r"reduce the steps to \d+"),
        (DrawRequest("extend", PHOTO, sides=(150, 0, 0, 150), steps=1, count=6), r"reduce the images to \d"),
        (
            DrawRequest("fill", PHOTO, order="raster", steps_per_patch=1000, count=6),
            r"reduce the steps per patch to \d+",
        ),
    ],
)
def test_requests_that_take_too_long_are_refused_with_what_fits(draw_request, message):
    limits = Limits(seconds=300)
    if draw_request.order != "together":
        limits = replace(limits, seconds=20)
    with pytest.raises(ValueError, match=message) as error:
        check_cost(draw_request, COST, limits)
    remedy = str(error.value).rpartition(": ")[2]
    if size := re.search(r"\d+x\d+", remedy):
        draw_request = replace(draw_request, size=size[0])
    else:
        name = "count" if "images" in remedy else "steps_per_patch" if "patch" in remedy else "steps"
        draw_request = replace(draw_request, **{name: int(re.search(r"\d+", remedy)[0])})
    assert check_cost(draw_request, COST, limits).seconds <= limits.seconds


def test_requests_that_do_not_fit_into_memory_are_refused():
    full = replace(COST, network=replace(ATTENTION, measurements=[Measurement(64, 1e-9, 0, 2**50)]))
    with pytest.raises(ValueError, match="the images must fit into memory, got 8x8, which needs 1 PiB of the"):
        check_cost(DrawRequest("new"), full, Limits())
    with pytest.raises(ValueError, match="of the 1 KiB available: choose a smaller size or fewer images"):
        check_cost(DrawRequest("new"), replace(COST, free=1024), Limits())


def test_the_largest_size_fits_and_the_next_one_does_not():
    limits = Limits(seconds=60)
    side, _ = largest_size(COST, limits)
    steps = DrawRequest("new", size=f"{side}x{side}", movie=False)
    assert estimate(steps, COST).seconds <= 60
    assert estimate(replace(steps, size=f"{side + 2}x{side + 2}"), COST).seconds > 60
    assert largest_size(COST, Limits(seconds=60, pixels=100)) == (10, 10)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0123, "0.012 s"), (45.4, "45 s"), (300, "5 min"), (7200, "2 h"), (200000, "2 days")]
)
def test_durations_have_a_suitable_unit(seconds, text):
    assert format_duration(seconds) == text


def test_costs_are_measured_in_the_precision_of_the_model():
    """The same operations; in bf16 most tensors of a DiT have half the bytes, and its weights are converted before."""
    network = small_dit(channels=3, dim=64, depth=3, heads=4)
    model = DiffusionModel(Denoiser(network, RectifiedFlow()).eval(), Sampler(steps=2), 16)
    exact, half = (
        measure_network(replace(model, precision=name), largest=1024, repeated=0) for name in ("float32", "bf16")
    )
    for point, other in zip(exact.measurements, half.measurements, strict=False):
        assert (point.area, point.work) == (other.area, other.work)
        assert 0.5 * point.memory < other.memory < 0.65 * point.memory
    assert not torch.is_autocast_enabled("cpu")
