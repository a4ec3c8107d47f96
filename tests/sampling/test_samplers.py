"""Laws of samplers along a noise path, on exact denoisers in float64."""

from itertools import pairwise

import pytest
import torch

from asyncdiff.denoising.oracles import GaussianOracle, random_gaussian
from asyncdiff.noise.masks import Half
from asyncdiff.noise.orders import Raster, Spiral
from asyncdiff.noise.paths import AsyncPatch, Floored, Synchronous
from asyncdiff.randomness import RandomSource, seeded
from asyncdiff.sampling.samplers import Autoregressive, Sampler
from asyncdiff.sampling.solvers import DDIM, Heun, Multistep, Solver

SHAPE = (1, 4, 4)
ORACLE = GaussianOracle(*random_gaussian(16), (2, 2))
SAMPLERS = [Sampler(Synchronous(), DDIM(), 8), Sampler(AsyncPatch(), DDIM(0.25), 8)]
SAMPLERS += [Sampler(AsyncPatch(), Heun(), 8), Sampler(AsyncPatch(), Multistep(), 8)]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_image_i_depends_only_on_seed_i(sampler):
    together = sampler(ORACLE, seeds=[3, 4, 5], shape=SHAPE, dtype=torch.float64)
    alone = sampler(ORACLE, seeds=[4], shape=SHAPE, dtype=torch.float64)
    assert torch.allclose(together[1:2], alone, atol=1e-12)
    assert not torch.allclose(together[0], together[1])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_known_pixels_are_returned_bit_for_bit(sampler):
    image = torch.randn(2, *SHAPE, dtype=torch.float64)
    known = torch.rand(2, 4, 4) < 0.7  # also pixels inside patches that are not fully known
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
    """On Gaussian data the inpainted half has the conditional mean and covariance of the known half."""
    n = 3000
    mean, cov = random_gaussian(16)
    known = Half("left")(4, 4)
    image = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    out = Sampler(AsyncPatch(), DDIM(0.5), 100)(
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


def test_frames_go_from_noise_to_clean():
    frames = list(SAMPLERS[1].frames(ORACLE, seeds=[0], shape=SHAPE, dtype=torch.float64))
    assert len(frames) == 9
    assert (frames[0].t == 1).all()
    assert (frames[-1].t == 0).all()
    assert all((b.t <= a.t).all() for a, b in pairwise(frames))
    whole = SAMPLERS[1](ORACLE, seeds=[0], shape=SHAPE, dtype=torch.float64)
    assert torch.equal(frames[-1].x_t, whole)


def test_a_solver_begins_once_per_trajectory():
    """A solver's history, if any, belongs to a single trajectory."""

    class Begun(Solver):
        begun = 0

        def begin(self) -> Solver:
            self.begun += 1
            return DDIM()

        def __call__(self, evaluate, x_t, t, to, noise):
            raise AssertionError("the sampler must step with the solver that begin() returned")

    sampler = Sampler(AsyncPatch(), Begun(), 3)
    for calls in (1, 2):
        sampler(ORACLE, seeds=[0], shape=SHAPE, dtype=torch.float64)
        assert sampler.solver.begun == calls


def test_a_fully_known_image_is_returned():
    image = torch.randn(1, *SHAPE, dtype=torch.float64)
    known = torch.ones(1, 4, 4, dtype=torch.bool)
    out = SAMPLERS[0](ORACLE, seeds=[0], shape=SHAPE, image=image, known=known, dtype=torch.float64)
    assert torch.equal(out, image)


def test_invalid_requests_raise_one_line_errors():
    x = torch.zeros(1, *SHAPE)
    call = SAMPLERS[0]
    with pytest.raises(ValueError, match="seeds must contain at least one seed"):
        call(ORACLE, seeds=[], shape=SHAPE)
    with pytest.raises(ValueError, match="image and known must be passed together, got image without known"):
        call(ORACLE, seeds=[0], shape=SHAPE, image=x)
    with pytest.raises(ValueError, match=r"image must have shape \(1, 1, 4, 4\), got \(1, 1, 6, 6\)"):
        call(ORACLE, seeds=[0], shape=SHAPE, image=torch.zeros(1, 1, 6, 6), known=torch.zeros(1, 6, 6).bool())
    with pytest.raises(ValueError, match="one class per seed, got 2 for 1 seeds"):
        call(ORACLE, seeds=[0], shape=SHAPE, label=torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="steps must be at least 1"):
        Sampler(steps=0)
    with pytest.raises(ValueError, match="path must end at the clean image, got a path with the floor 0.1"):
        Sampler(Floored(Synchronous(), 0.1))


def test_overlap_towards_1_approaches_synchronous():
    for solver in (DDIM(), Multistep()):
        wave = Autoregressive(Raster(), 1 - 1e-9, solver, steps_per_patch=12)
        nearly_synchronous = wave(ORACLE, seeds=[0, 1], shape=SHAPE, dtype=torch.float64)
        plain = Sampler(Synchronous(), solver, 12)(ORACLE, seeds=[0, 1], shape=SHAPE, dtype=torch.float64)
        assert torch.allclose(nearly_synchronous, plain, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("overlap", "evaluations"), [(0, 1024), (0.5, 520), (0.75, 268), (0.9, 117)])
def test_number_of_evaluations_for_64_patches_in_16_steps(overlap, evaluations):
    """1024 is the number of the paper for strict order (arXiv:2606.07079)."""
    assert Autoregressive(Raster(), overlap, steps_per_patch=16).num_steps((8, 8)) == evaluations


def test_strict_order_finishes_a_patch_before_the_next_one_starts():
    sampler = Autoregressive(Spiral(), steps_per_patch=3)
    frames = list(sampler.frames(ORACLE, seeds=[0], shape=SHAPE, dtype=torch.float64))
    assert len(frames) == 4 * 3 + 1
    ranks = Spiral().ranks(RandomSource(1, (2, 2)))[0].flatten()
    for number, frame in enumerate(frames):
        done, part = divmod(number, 3)
        expected = torch.where(ranks < done, 0.0, 1.0).double()
        expected[ranks == done] = 1 - part / 3
        assert torch.allclose(frame.t.flatten(), expected, rtol=0, atol=1e-9)


def test_steps_without_moving_patches_need_no_evaluation():
    """Of four patches in strict order two are known: half of the evaluations, and the same image in any batch."""
    seen = []

    class Watched(GaussianOracle):
        def __call__(self, x_t, t, label=None, *, unique=None):
            seen.append(len(x_t))
            return super().__call__(x_t, t, label, unique=unique)

    oracle = Watched(*random_gaussian(16), (2, 2))
    image = torch.randn(2, *SHAPE, generator=seeded(0), dtype=torch.float64)
    known = torch.stack([Half("top")(4, 4), torch.zeros(4, 4, dtype=torch.bool)])
    sampler = Autoregressive(solver=Multistep(), steps_per_patch=5)
    alone = sampler(oracle, seeds=[3], shape=SHAPE, image=image[:1], known=known[:1], dtype=torch.float64)
    assert len(seen) == 10
    together = sampler(oracle, seeds=[3, 4], shape=SHAPE, image=image, known=known, dtype=torch.float64)
    assert len(seen) == 10 + 20
    assert torch.allclose(together[:1], alone, rtol=0, atol=1e-12)


def test_pixels_known_inside_unknown_patches_guide_the_others():
    """Every second row is known, but no patch. The rest must come closer to the conditional mean than without."""
    mean, cov = random_gaussian(16)
    known = torch.zeros(4, 4, dtype=torch.bool)
    known[::2] = True
    k, n = known.flatten(), 400
    image = torch.randn(1, *SHAPE, generator=seeded(1), dtype=torch.float64) * 2
    expected = mean[~k] + cov[~k][:, k] @ torch.linalg.inv(cov[k][:, k]) @ (image.flatten()[k] - mean[k])
    out = Sampler(Synchronous(), DDIM(), 50)(
        ORACLE,
        seeds=range(n),
        shape=SHAPE,
        image=image.expand(n, *SHAPE),
        known=known.expand(n, 4, 4),
        dtype=torch.float64,
    ).flatten(1)
    assert torch.equal(out[:, k], image.flatten()[k].expand(n, -1))
    # Replacement is not exact: it closes only a part of the distance (measured: a quarter).
    assert (out[:, ~k].mean(0) - expected).norm() < 0.8 * (mean[~k] - expected).norm()
