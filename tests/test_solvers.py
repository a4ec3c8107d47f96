"""Laws of one step, on an exact Gaussian denoiser in float64."""

import math

import pytest
import torch
from oracle import GaussianOracle, draw, gaussian

from asyncdiff.paths import AsyncPatch, Path, Synchronous
from asyncdiff.processes import CosineVP, RectifiedFlow
from asyncdiff.randomness import seeded
from asyncdiff.sampling import Sampler
from asyncdiff.shapes import to_pixels
from asyncdiff.solvers import Ddim

SHAPE, GRID = (1, 4, 4), (2, 2)
MEAN, COV = gaussian(16)


def maps(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A level map and a lower one; the first patch stands still, the second is clean already."""
    t = 0.3 + 0.6 * torch.rand(batch, *GRID, generator=seeded(0), dtype=torch.float64)
    to = t * torch.rand(batch, *GRID, generator=seeded(1), dtype=torch.float64)
    t[:, 0, 1] = to[:, 0, 1] = 0
    to[:, 0, 0] = t[:, 0, 0]
    return t, to


def noised(process, t, batch):
    x = draw(MEAN, COV, batch, SHAPE)
    return process.noised(x, torch.randn(x.shape, generator=seeded(2), dtype=torch.float64), t)


@pytest.mark.parametrize("c", [0.0, 0.25, 1.0])
def test_a_patch_that_stands_still_comes_back_bit_for_bit(c):
    oracle, (t, to) = GaussianOracle(MEAN, COV, GRID), maps(5)
    x_t = noised(oracle.process, t, 5)
    out = Ddim(c)(oracle, x_t, t, to, torch.randn(x_t.shape, dtype=torch.float64))
    assert torch.equal(out[:, :, :2], x_t[:, :, :2])  # both upper patches
    assert (out[:, :, 2:] != x_t[:, :, 2:]).all()
    assert out.isfinite().all()


def test_a_step_at_pure_noise_to_clean_is_finite():
    oracle = GaussianOracle(MEAN, COV, GRID)
    x_t = torch.randn(3, *SHAPE, dtype=torch.float64)
    t, to = torch.ones(3, *GRID, dtype=torch.float64), torch.zeros(3, *GRID, dtype=torch.float64)
    for c in (0.0, 1.0):
        out = Ddim(c)(oracle, x_t, t, to, torch.randn_like(x_t))
        assert torch.allclose(out, oracle(x_t, t).x)  # one step gives the mean of the images


def test_deterministic_ddim_is_euler_for_the_rectified_flow():
    oracle, (t, to) = GaussianOracle(MEAN, COV, GRID), maps(5)
    x_t = noised(oracle.process, t, 5)
    euler = x_t + to_pixels(to - t, (4, 4)) * oracle(x_t, t).v
    assert torch.allclose(Ddim(0.0)(oracle, x_t, t, to, None), euler, atol=1e-13)


@pytest.mark.parametrize("process", [RectifiedFlow(), CosineVP()])
@pytest.mark.parametrize("c", [0.0, 0.25, 1.0])
def test_steps_keep_the_marginals(process, c):
    """Many small steps from noise carry N(0, 1) to the data's distribution, whatever the stochasticity."""
    n, steps = 4000, 200
    sampler = Sampler(AsyncPatch(), Ddim(c), steps=steps)
    oracle = GaussianOracle(MEAN[:4], COV[:4, :4], (2, 2), process)
    x = sampler(oracle, seeds=range(n), shape=(1, 2, 2), dtype=torch.float64).flatten(1)
    error = 4 / math.sqrt(n)
    assert (x.mean(0) - MEAN[:4]).abs().max() < error * COV[:4, :4].diagonal().sqrt().max() + 0.01
    assert torch.allclose(x.T.cov(), COV[:4, :4], atol=2 * error * COV.diagonal()[:4].max().item() + 0.01)


def exact_end(x_1: torch.Tensor) -> torch.Tensor:
    """Where the synchronous flow carries noise: x_0 = mean + S^(1/2) x_1, the same map for both processes."""
    values, vectors = torch.linalg.eigh(COV)
    return MEAN + x_1 @ (vectors * values.sqrt()) @ vectors.T


def error(solver: Ddim, path: Path, steps: int) -> float:
    oracle = GaussianOracle(MEAN, COV, GRID)
    frames = list(Sampler(path, solver, steps).frames(oracle, seeds=range(8), shape=SHAPE, dtype=torch.float64))
    return (frames[-1].x_t.flatten(1) - exact_end(frames[0].x_t.flatten(1))).norm(dim=1).mean().item()


def test_deterministic_ddim_converges_with_order_one():
    coarse, fine = (error(Ddim(), Synchronous(), steps) for steps in (64, 128))
    assert math.log2(coarse / fine) == pytest.approx(1, abs=0.1)


def test_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"stochasticity must lie in \[0, 1\], got 1.5"):
        Ddim(1.5)
