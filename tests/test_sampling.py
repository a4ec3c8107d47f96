from itertools import pairwise

import pytest
import torch

from asyncdiff.masks import Half
from asyncdiff.oracles import GaussianOracle, random_gaussian
from asyncdiff.paths import AsyncPatch, Floored, Synchronous
from asyncdiff.sampling import Sampler
from asyncdiff.solvers import Ddim, Heun, Multistep, Solver

SHAPE = (1, 4, 4)
ORACLE = GaussianOracle(*random_gaussian(16), (2, 2))
SAMPLERS = [Sampler(Synchronous(), Ddim(), 8), Sampler(AsyncPatch(), Ddim(0.25), 8)]
SAMPLERS += [Sampler(AsyncPatch(), Heun(), 8), Sampler(AsyncPatch(), Multistep(), 8)]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_image_i_depends_on_seed_i_only(sampler):
    together = sampler(ORACLE, seeds=[3, 4, 5], shape=SHAPE, dtype=torch.float64)
    alone = sampler(ORACLE, seeds=[4], shape=SHAPE, dtype=torch.float64)
    assert torch.allclose(together[1:2], alone, atol=1e-12)
    assert not torch.allclose(together[0], together[1])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_known_pixels_come_back_bit_for_bit(sampler):
    image = torch.randn(2, *SHAPE, dtype=torch.float64)
    known = torch.rand(2, 4, 4) < 0.7  # also pixels inside patches that are not wholly known
    out = sampler(ORACLE, seeds=[0, 1], shape=SHAPE, image=image, known=known, dtype=torch.float64)
    mask = known[:, None]
    assert torch.equal(out[mask], image[mask])
    assert (out[~mask] != image[~mask]).all()


def test_unknown_pixels_are_never_read():
    image = torch.randn(1, *SHAPE, dtype=torch.float64)
    known = Half("left")(4, 4)[None]
    clean = SAMPLERS[1](ORACLE, seeds=[0], shape=SHAPE, image=image, known=known, dtype=torch.float64)
    image[:, :, :, 2:] = torch.nan
    spoiled = SAMPLERS[1](ORACLE, seeds=[0], shape=SHAPE, image=image, known=known, dtype=torch.float64)
    assert torch.equal(clean, spoiled)


def test_inpainting_samples_the_exact_conditional():
    """On Gaussian data the completed half has the conditional mean and covariance of the known half."""
    n = 3000
    mean, cov = random_gaussian(16)
    known = Half("left")(4, 4)
    image = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    out = Sampler(AsyncPatch(), Ddim(0.5), 100)(
        ORACLE,
        seeds=range(n),
        shape=SHAPE,
        image=image.expand(n, *SHAPE),
        known=known.expand(n, 4, 4),
        dtype=torch.float64,
    ).flatten(1)
    k = known.flatten()
    gain = cov[~k][:, k] @ torch.linalg.inv(cov[k][:, k])
    expected = mean[~k] + gain @ (image.flatten()[k] - mean[k])
    spread = cov[~k][:, ~k] - gain @ cov[k][:, ~k]
    tolerance = 4 * (spread.diagonal() / n).sqrt().max().item()
    assert torch.allclose(out[:, ~k].mean(0), expected, atol=tolerance + 0.01)
    assert torch.allclose(out[:, ~k].T.cov(), spread, atol=0.06 * spread.diagonal().max().item() + 0.01)


def test_frames_walk_from_noise_to_clean():
    frames = list(SAMPLERS[1].frames(ORACLE, seeds=[0], shape=SHAPE, dtype=torch.float64))
    assert len(frames) == 9
    assert (frames[0].t == 1).all()
    assert (frames[-1].t == 0).all()
    assert all((b.t <= a.t).all() for a, b in pairwise(frames))
    whole = SAMPLERS[1](ORACLE, seeds=[0], shape=SHAPE, dtype=torch.float64)
    assert torch.equal(frames[-1].x_t, whole)


def test_a_solver_begins_once_per_walk():
    """Its memory, if it has one, is that of one walk."""

    class Begun(Solver):
        begun = 0

        def begin(self) -> Solver:
            self.begun += 1
            return Ddim()

        def __call__(self, evaluate, x_t, t, to, noise):
            raise AssertionError("the walk must step with what begin() returned")

    sampler = Sampler(AsyncPatch(), Begun(), 3)
    for walks in (1, 2):
        sampler(ORACLE, seeds=[0], shape=SHAPE, dtype=torch.float64)
        assert sampler.solver.begun == walks


def test_everything_known_needs_nothing():
    image = torch.randn(1, *SHAPE, dtype=torch.float64)
    known = torch.ones(1, 4, 4, dtype=torch.bool)
    out = SAMPLERS[0](ORACLE, seeds=[0], shape=SHAPE, image=image, known=known, dtype=torch.float64)
    assert torch.equal(out, image)


def test_bad_requests_are_one_clear_error():
    x = torch.zeros(1, *SHAPE)
    call = SAMPLERS[0]
    with pytest.raises(ValueError, match="seeds must name at least one image"):
        call(ORACLE, seeds=[], shape=SHAPE)
    with pytest.raises(ValueError, match="image and known go together, got image without known"):
        call(ORACLE, seeds=[0], shape=SHAPE, image=x)
    with pytest.raises(ValueError, match=r"image must have shape \(1, 1, 4, 4\), got \(1, 1, 6, 6\)"):
        call(ORACLE, seeds=[0], shape=SHAPE, image=torch.zeros(1, 1, 6, 6), known=torch.zeros(1, 6, 6).bool())
    with pytest.raises(ValueError, match="one class per seed, got 2 for 1 seeds"):
        call(ORACLE, seeds=[0], shape=SHAPE, label=torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="steps must be at least 1"):
        Sampler(steps=0)
    with pytest.raises(ValueError, match="path must end at the clean image, got a floor t_min of 0.1"):
        Sampler(Floored(Synchronous(), 0.1))
