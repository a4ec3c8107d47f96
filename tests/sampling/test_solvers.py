"""Laws of one step and of whole trajectories, on exact denoisers in float64."""

import math
from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
import torch
from sampling_setup import COV, GAUSSIAN, GRID, MEAN, SHAPE, frames, random_images, run
from torch import Tensor

from asyncdiff.denoising.denoiser import Prediction
from asyncdiff.denoising.oracles import GaussianOracle, MixtureOracle, random_gaussian, random_mixture
from asyncdiff.noise.orders import Raster
from asyncdiff.noise.paths import AsyncPatch, Curve, Ordered, Path, Synchronous
from asyncdiff.noise.processes import CosineVP, LinearVP, Process, RectifiedFlow
from asyncdiff.randomness import RandomSource, seeded
from asyncdiff.sampling.samplers import Sampler
from asyncdiff.sampling.solvers import DDIM, Heun, Multistep, Solver
from asyncdiff.shapes import to_pixels

SOLVERS = [DDIM(), DDIM(0.25), DDIM(1.0), Heun(), Multistep()]
PROCESSES = [RectifiedFlow(), CosineVP(), LinearVP()]
PATHS = {
    "synchronous": Synchronous(),
    "async": AsyncPatch(),
    "ordered": Ordered(Raster(), overlap=0.5),  # its kinks lie at multiples of s = 0.2, those of async at 0.5
}


def label(value: object) -> str | None:
    if isinstance(value, DDIM):
        return f"DDIM({value.stochasticity})"
    return None if isinstance(value, (str, int, float)) else type(value).__name__


def maps(batch: int) -> tuple[Tensor, Tensor]:
    """Return a level map and a lower one: the first patch does not move, the second is clean, the third reaches 0."""
    t = 0.3 + 0.6 * torch.rand(batch, *GRID, generator=seeded(0), dtype=torch.float64)
    to = t * torch.rand(batch, *GRID, generator=seeded(1), dtype=torch.float64)
    t[:, 0, 1] = to[:, 0, 1] = to[:, 1, 0] = 0
    to[:, 0, 0] = t[:, 0, 0]
    return t, to


def noised(oracle: MixtureOracle, t: Tensor) -> Tensor:
    x = oracle.sample(len(t), SHAPE, seeded(1))
    return oracle.process.noised(x, torch.randn(x.shape, generator=seeded(2), dtype=torch.float64), t)


class Counted:
    """An oracle that counts its evaluations."""

    def __init__(self, oracle: MixtureOracle):
        self.oracle, self.process, self.grid = oracle, oracle.process, oracle.grid
        self.evaluations = 0

    def __call__(self, x_t, t, label=None) -> Prediction:
        self.evaluations += 1
        return self.oracle(x_t, t, label)


@pytest.mark.parametrize("process", PROCESSES, ids=label)
@pytest.mark.parametrize("solver", SOLVERS, ids=label)
def test_a_patch_that_does_not_move_is_returned_bit_for_bit(solver, process):
    oracle, (t, to) = GaussianOracle(MEAN, COV, GRID, process), maps(5)
    x_t = noised(oracle, t)
    walk = solver.begin()
    out = walk(oracle, x_t, t, to, torch.randn(x_t.shape, dtype=torch.float64))
    assert torch.equal(out[:, :, :2], x_t[:, :, :2])  # both upper patches
    assert (out[:, :, 2:] != x_t[:, :, 2:]).all()
    assert out.isfinite().all()
    assert torch.equal(walk(oracle, out, to, to, torch.randn(x_t.shape, dtype=torch.float64)), out)


@pytest.mark.parametrize("solver", SOLVERS, ids=label)
def test_the_prediction_of_a_patch_that_does_not_move_is_not_used(solver):
    """It is not used even if it is NaN, nor by later steps."""

    def evaluate(x_t: Tensor, t: Tensor) -> Prediction:
        return replace(GAUSSIAN(x_t, t), v=GAUSSIAN(x_t, t).v.masked_fill(to_pixels(waits, (4, 4)), torch.nan))

    t, to = maps(2)
    waits, x_t, noise = t == to, noised(GAUSSIAN, t), torch.zeros(2, *SHAPE).double()
    walk = solver.begin()
    middle = walk(evaluate, x_t, t, to, noise)
    assert torch.equal(middle, solver.begin()(GAUSSIAN, x_t, t, to, noise))
    assert walk(GAUSSIAN, middle, to, to / 2, noise).isfinite().all()


@pytest.mark.parametrize("process", PROCESSES, ids=label)
@pytest.mark.parametrize("solver", SOLVERS, ids=label)
def test_one_step_from_pure_noise_gives_the_mean_of_the_images(solver, process):
    """With Heun's and the multistep method for the rectified flow only: elsewhere, Euler's step is finite."""
    oracle, x_t, noise = GaussianOracle(MEAN, COV, GRID, process), random_images(3), random_images(3, seed=1)
    t = torch.ones(3, *GRID, dtype=torch.float64)
    out = solver(oracle, x_t, t, torch.zeros_like(t), noise)
    assert out.isfinite().all()
    if isinstance(solver, DDIM) or isinstance(process, RectifiedFlow):
        assert torch.allclose(out, oracle(x_t, t).x)


def test_deterministic_ddim_equals_euler_for_the_rectified_flow():
    t, to = maps(5)
    x_t = noised(GAUSSIAN, t)
    euler = x_t + to_pixels(to - t, (4, 4)) * GAUSSIAN(x_t, t).v
    for solver in (DDIM(0.0), Multistep()):  # the latter without begin(), or in its first step
        assert torch.allclose(solver(GAUSSIAN, x_t, t, to, None), euler, atol=1e-13)


@pytest.mark.parametrize("process", PROCESSES, ids=label)
@pytest.mark.parametrize("solver", [Heun(), Multistep()], ids=label)
def test_second_order_solvers_integrate_linear_slopes_exactly(solver, process):
    """Unequal steps, in another ratio for every patch; Multistep from its second step, Heun away from t = 0."""

    def evaluate(x_t: Tensor, t: Tensor) -> Prediction:
        return Prediction(process, x_t, t, to_pixels((2 + 3 * t) / process.wronskian(t), (4, 4)).expand_as(x_t))

    def exact(t: Tensor) -> Tensor:
        return to_pixels(2 * t + 1.5 * t.square(), (4, 4)).expand(1, *SHAPE)

    t, middle = torch.tensor([[[0.9, 0.8], [0.7, 1.0]]]).double(), torch.tensor([[[0.8, 0.5], [0.6, 0.6]]]).double()
    to = torch.tensor([[[0.6, 0.4], [0.45, 0.4]]]).double()  # ratios 2, 1/3, 3/2, 1/2
    walk = solver.begin()
    walk(evaluate, exact(t), t, middle, None)
    assert torch.allclose(walk(evaluate, exact(middle), middle, to, None), exact(to), atol=1e-14)


def test_a_patch_without_history_takes_euler_s_step():
    """Of two patches, the one that did not move in the previous step takes Euler's step, the other one does not."""
    oracle = GaussianOracle(MEAN, COV, (1, 2))
    levels = [torch.tensor([[row]], dtype=torch.float64) for row in ([0.9, 0.8], [0.7, 0.8], [0.5, 0.6])]
    walk = Multistep().begin()
    x = noised(oracle, levels[0])
    x = walk(oracle, x, *levels[:2], None)
    out, euler = walk(oracle, x, *levels[1:], None), Multistep()(oracle, x, *levels[1:], None)
    assert torch.equal(out[..., 2:], euler[..., 2:])
    assert (out[..., :2] - euler[..., :2]).abs().min() > 1e-4


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_a_multistep_object_keeps_no_history(path):
    solver = Multistep()
    first, again = (run(Sampler(path, solver, 6), GAUSSIAN, [0, 1]) for _ in range(2))
    assert torch.equal(first, again)
    assert vars(solver) == {}
    sampler, request = Sampler(path, solver, 6), {"seeds": [0, 1], "shape": SHAPE, "dtype": torch.float64}
    walks = [sampler.frames(GAUSSIAN, **request) for _ in range(2)]
    side_by_side = list(zip(*walks, strict=True))[-1]
    assert all(torch.equal(frame.x_t, first) for frame in side_by_side)


@pytest.mark.parametrize(("solver", "evaluations"), [(DDIM(), 10), (Multistep(), 10), (Heun(), 19)], ids=label)
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_evaluations_are_counted(path, solver, evaluations):
    """Heun saves one: in the last step every patch arrives at 0 or is there."""
    oracle = Counted(GAUSSIAN)
    run(Sampler(path, solver, 10), oracle, [0, 1])
    assert oracle.evaluations == evaluations
    assert evaluations in (10 * solver.evaluations, 10 * solver.evaluations - 1)


def test_heun_leaves_no_noise_behind():
    """All images are equal: the last step ends on them; averaging with the velocity at t = 0 would end far away."""
    oracle = GaussianOracle(MEAN, 1e-12 * torch.eye(16, dtype=torch.float64), GRID)
    x = run(Sampler(AsyncPatch(), Heun(), 4), oracle, range(8))
    assert (x.flatten(1) - MEAN).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("c", "process"), [(0.25, RectifiedFlow()), (1.0, RectifiedFlow()), (1.0, CosineVP())], ids=label
)
def test_a_stochastic_solver_keeps_mean_and_covariance(c, process):
    """The steps are affine on Gaussian data, so the distribution of all results is computed at once, without sampling.

    The mean is kept exactly, the covariance to first order: extrapolated from two numbers of steps it is far nearer.
    """
    oracle = GaussianOracle(MEAN[:4], COV[:4, :4], GRID, process)
    coarse, fine = (moments(DDIM(c), oracle, steps) for steps in (30, 60))
    for path in PATHS:
        assert torch.allclose(fine[path][0], oracle.mean, atol=1e-13)
        (_, at_30), (_, at_60) = coarse[path], fine[path]
        error, extrapolated = (at_60 - oracle.cov).norm(), (2 * at_60 - at_30 - oracle.cov).norm()
        assert 3 * extrapolated < error < 0.3 * oracle.cov.norm()


def moments(solver: DDIM, oracle: GaussianOracle, steps: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and covariance of the images from N(0, 1) noise, on one curve of each path."""
    curves = [path.draw(1, GRID, generator=seeded(0), dtype=torch.float64) for path in PATHS.values()]
    progress = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    levels = [torch.cat([curve(s[None])[0].expand(9, *GRID) for curve in curves]) for s in progress]
    unit, zero = torch.eye(4).double(), torch.zeros(4, 4).double()
    x = torch.cat([unit, zero, zero[:1]]).repeat(len(PATHS), 1).reshape(-1, 1, 2, 2)  # the last row is the offset
    noise = torch.cat([zero, unit, zero[:1]]).repeat(len(PATHS), 1).reshape(-1, 1, 2, 2)
    mean, cov = torch.zeros(len(PATHS), 1, 4).double(), unit.expand(len(PATHS), 4, 4)
    for t, to in pairwise(levels):
        out = solver(oracle, x, t, to, noise).reshape(len(PATHS), 9, 4)
        offset = out[:, 8:]
        by_x, by_noise = out[:, :4] - offset, out[:, 4:8] - offset
        mean, cov = mean @ by_x + offset, by_x.mT @ cov @ by_x + by_noise.mT @ by_noise
    return {name: (mean[k, 0], cov[k]) for k, name in enumerate(PATHS)}


@pytest.mark.parametrize(
    ("solver", "order", "process"),
    [(DDIM(), 1, CosineVP()), (Heun(), 2, RectifiedFlow()), (Multistep(), 2, CosineVP())],
    ids=label,
)
def test_order_of_convergence_on_gaussian_data(solver, order, process):
    """The synchronous flow carries noise to x_0 = mean + S^(1/2) x_1, the same map for both processes."""
    values, vectors = torch.linalg.eigh(COV)
    root = (vectors * values.sqrt()) @ vectors.T

    def error(steps: int) -> float:
        oracle = GaussianOracle(MEAN, COV, GRID, process)
        first, *_, last = (
            frame.x_t.flatten(1) for frame in frames(Sampler(Synchronous(), solver, steps), oracle, range(8))
        )
        return (last - MEAN - first @ root).norm(dim=1).mean().item()

    assert math.log2(error(20) / error(40)) == pytest.approx(order, abs=0.15)


class SideBySide(Path):
    """`IMAGES` images on each of `PATHS`: one trajectory instead of three."""

    def curve(self, source: RandomSource) -> Curve:
        shares = [list(source.generator)[k * IMAGES : (k + 1) * IMAGES] for k in range(len(PATHS))]
        curves = [
            path.draw(IMAGES, source.grid, generator=share, dtype=source.dtype)
            for path, share in zip(PATHS.values(), shares, strict=True)
        ]

        def curve(s: Tensor) -> tuple[Tensor, Tensor]:
            parts = [curve(s[:IMAGES]) for curve in curves]
            return torch.cat([t for t, _ in parts]), torch.cat([slope for _, slope in parts])

        return curve


IMAGES = 9


@pytest.mark.parametrize("process", [RectifiedFlow(), CosineVP()], ids=label)  # LinearVP's root of t needs more steps
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("solver", "order"), [(DDIM(), 1), (Heun(), 2), (Multistep(), 2)], ids=label)
def test_order_of_convergence_on_every_path(solver, order, path, process):
    """On a mixture; all numbers of steps put the kinks of the paths on the grid."""
    coarse, fine = (error(final_images(type(solver), process, steps), process)[path] for steps in (30, 60))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


def error(ends: Tensor, process: Process) -> dict[str, float]:
    """Median distance per path: an image that starts on the ridge between two modes comes late to any order.

    The reference is extrapolated from Heun's 60 and 120 steps, as near to the solution as its 480 steps are: within
    2 % of the smallest distances here (checked with 2560 steps).
    """
    reference = (4 * final_images(Heun, process, 120) - final_images(Heun, process, 60)) / 3
    distances = (ends - reference).flatten(1).norm(dim=1).reshape(len(PATHS), IMAGES)
    return dict(zip(PATHS, distances.median(1).values.tolist(), strict=True))


@cache
def final_images(solver: type[Solver], process: Process, steps: int) -> Tensor:
    oracle = MixtureOracle(*random_mixture(2, 4), GRID, process)
    return run(Sampler(SideBySide(), solver(), steps), oracle, range(len(PATHS) * IMAGES), (1, 2, 2))


def test_kinks_between_steps_do_not_reduce_the_order():
    """Numbers of steps that put no group's start or end on the grid: order two.

    Multistep's bound on its ratio of steps is for these: without it, the error here is twelve times as large.
    """

    def walked(solver: Solver, steps: int) -> Tensor:
        path, oracle = Ordered(Raster(), overlap=0.37), GaussianOracle(*random_gaussian(4), GRID)
        return run(Sampler(path, solver, steps), oracle, range(IMAGES), (1, 2, 2))

    reference, errors = walked(Heun(), 192), {}
    for solver, steps in [(DDIM(), 16), (Heun(), 16), (Heun(), 48), (Multistep(), 16), (Multistep(), 48)]:
        errors[type(solver), steps] = (walked(solver, steps) - reference).square().mean().sqrt().item()
    for kind in (Heun, Multistep):
        assert math.log(errors[kind, 16] / errors[kind, 48], 3) > 1.8
    assert errors[Multistep, 16] < 2 * errors[Heun, 16] < errors[DDIM, 16] / 3


@pytest.mark.parametrize("solver", SOLVERS, ids=label)
def test_solvers_keep_the_precision_of_images(solver):
    for dtype in (torch.bfloat16, torch.float32):
        x = Sampler(AsyncPatch(), solver, 5)(GAUSSIAN, seeds=range(4), shape=SHAPE, dtype=dtype)
        assert x.dtype == dtype
        assert x.isfinite().all()


def test_stochasticity_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"stochasticity must lie in \[0, 1\], got 1.5"):
        DDIM(1.5)
