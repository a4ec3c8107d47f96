"""Laws of samplers along a noise path, on exact denoisers in float64."""

import inspect
from itertools import pairwise

import pytest
import torch
from sampling_setup import COV, GAUSSIAN, GRID, MEAN, SHAPE, conditional, frames, random_images, run

from asyncdiff.denoising.oracles import GaussianOracle
from asyncdiff.noise.masks import Half
from asyncdiff.noise.orders import Raster, Spiral
from asyncdiff.noise.paths import AsyncPatch, Floored, Synchronous
from asyncdiff.randomness import RandomSource
from asyncdiff.sampling.adaptive import Adaptive
from asyncdiff.sampling.engine import ImageBatch
from asyncdiff.sampling.guidance import ClassifierFree, InputGuidance
from asyncdiff.sampling.repaint import RePaint
from asyncdiff.sampling.samplers import Autoregressive, ImageSampler, Sampler
from asyncdiff.sampling.solvers import DDIM, Heun, Multistep, Solver
from asyncdiff.sampling.trajectories import Frame

PLAIN, ASYNC = Sampler(Synchronous(), DDIM(), 8), Sampler(AsyncPatch(), DDIM(0.25), 8)


def test_unknown_pixels_are_never_read():
    image, known = random_images(1), Half("left")(4, 4)[None]
    clean = run(ASYNC, GAUSSIAN, [0], image=image, known=known)
    image[:, :, :, 2:] = torch.nan
    assert torch.equal(clean, run(ASYNC, GAUSSIAN, [0], image=image, known=known))


@pytest.mark.parametrize(("solver", "steps"), [(Multistep(), 40), pytest.param(DDIM(0.5), 100, marks=pytest.mark.slow)])
def test_inpainting_samples_the_exact_conditional(solver, steps):
    """On Gaussian data the inpainted half has the conditional mean and covariance of the known half."""
    n, image, known = 3000, random_images(1), Half("left")(4, 4)
    request = {"image": image.expand(n, *SHAPE), "known": known.expand(n, 4, 4)}
    rest = run(Sampler(AsyncPatch(), solver, steps), GAUSSIAN, range(n), **request).flatten(1)[:, ~known.flatten()]
    mean, cov = conditional(image, known)
    tolerance = 4 * (cov.diagonal() / n).sqrt().max().item()
    assert torch.allclose(rest.mean(0), mean, atol=tolerance + 0.01)
    assert torch.allclose(rest.T.cov(), cov, atol=0.06 * cov.diagonal().max().item() + 0.01)


def test_frames_go_from_noise_to_clean():
    walk = frames(ASYNC, GAUSSIAN, [0])
    assert len(walk) == 9
    assert (walk[0].t == 1).all()
    assert (walk[-1].t == 0).all()
    assert all((b.t <= a.t).all() for a, b in pairwise(walk))
    assert torch.equal(walk[-1].x_t, run(ASYNC, GAUSSIAN, [0]))


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
        run(sampler, GAUSSIAN, [0])
        assert sampler.solver.begun == calls


def test_a_fully_known_image_is_returned():
    image = random_images(1)
    assert torch.equal(run(PLAIN, GAUSSIAN, [0], image=image, known=torch.ones(1, 4, 4, dtype=torch.bool)), image)


@pytest.mark.parametrize(
    ("seeds", "request_", "message"),
    [
        ([], {}, "seeds must contain at least one seed"),
        ([0], {"image": torch.zeros(1, *SHAPE)}, "image and known must be passed together, got image without known"),
        ([0], {"image": torch.zeros(1, 1, 6, 6), "known": torch.zeros(1, 6, 6).bool()},
         r"image must have shape \(1, 1, 4, 4\), got \(1, 1, 6, 6\)"),
        ([0], {"label": torch.zeros(2, dtype=torch.int64)}, "one class per seed, got 2 for 1 seeds"),
    ],
)  # fmt: skip
def test_invalid_requests_raise_one_line_errors(seeds, request_, message):
    with pytest.raises(ValueError, match=message):
        run(PLAIN, GAUSSIAN, seeds, **request_)


def test_invalid_arguments_raise_one_line_errors():
    with pytest.raises(ValueError, match="steps must be at least 1"):
        Sampler(steps=0)
    with pytest.raises(ValueError, match="path must end at the clean image, got a path with the floor 0.1"):
        Sampler(Floored(Synchronous(), 0.1))


@pytest.mark.parametrize("solver", [DDIM(), Multistep()])
def test_overlap_towards_1_approaches_synchronous(solver):
    wave = run(Autoregressive(Raster(), 1 - 1e-9, solver, steps_per_patch=12), GAUSSIAN)
    assert torch.allclose(wave, run(Sampler(Synchronous(), solver, 12), GAUSSIAN), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("overlap", "evaluations"), [(0, 1024), (0.5, 520), (0.75, 268), (0.9, 117)])
def test_number_of_evaluations_for_64_patches_in_16_steps(overlap, evaluations):
    """1024 is the number of the paper for strict order (arXiv:2606.07079)."""
    assert Autoregressive(Raster(), overlap, steps_per_patch=16).num_steps((8, 8)) == evaluations


def test_strict_order_finishes_a_patch_before_the_next_one_starts():
    walk = frames(Autoregressive(Spiral(), steps_per_patch=3), GAUSSIAN, [0])
    assert len(walk) == 4 * 3 + 1
    ranks = Spiral().ranks(RandomSource(1, GRID))[0].flatten()
    for number, frame in enumerate(walk):
        done, part = divmod(number, 3)
        expected = torch.where(ranks < done, 0.0, 1.0).double()
        expected[ranks == done] = 1 - part / 3
        assert torch.allclose(frame.t.flatten(), expected, rtol=0, atol=1e-9)


def test_steps_without_moving_patches_need_no_evaluation():
    """Of four patches in strict order two are known: half of the evaluations."""
    seen = []

    class Watched(GaussianOracle):
        def __call__(self, x_t, t, label=None):
            seen.append(len(x_t))
            return super().__call__(x_t, t, label)

    oracle, image = Watched(MEAN, COV, GRID), random_images(2)
    known = torch.stack([Half("top")(4, 4), torch.zeros(4, 4, dtype=torch.bool)])
    sampler = Autoregressive(solver=Multistep(), steps_per_patch=5)
    run(sampler, oracle, [3], image=image[:1], known=known[:1])
    assert len(seen) == 10
    run(sampler, oracle, [3, 4], image=image, known=known)
    assert len(seen) == 10 + 20


def test_pixels_known_inside_unknown_patches_guide_the_others():
    """Every second row is known, but no patch. The rest must come closer to the conditional mean than without."""
    known, n = torch.zeros(4, 4, dtype=torch.bool), 400
    known[::2] = True
    image, k = random_images(1, seed=1) * 2, known.flatten()
    request = {"image": image.expand(n, *SHAPE), "known": known.expand(n, 4, 4)}
    out = run(Sampler(Synchronous(), DDIM(), 50), GAUSSIAN, range(n), **request).flatten(1)
    assert torch.equal(out[:, k], image.flatten()[k].expand(n, -1))
    # Replacement is not exact: it closes only a part of the distance (measured: a quarter).
    expected = conditional(image, known)[0]
    assert (out[:, ~k].mean(0) - expected).norm() < 0.8 * (MEAN[~k] - expected).norm()


@pytest.mark.parametrize(
    "sampler",
    [
        Sampler(AsyncPatch(), Heun(), 5, [ClassifierFree(2.0)]),
        Autoregressive(Spiral(), 0.5, DDIM(0.5), 3, refresh=3, margin=1),
        Adaptive(steps=8, budget=6),
        RePaint(20, 5, 2, hold=True),
    ],
    ids=lambda sampler: type(sampler).__name__,
)
def test_a_replaced_argument_is_the_only_difference(sampler):
    guidance = [InputGuidance(0.5)]
    other = sampler.replace(guidance=guidance)
    assert type(other) is type(sampler)
    names = inspect.signature(type(sampler)).parameters
    different = [name for name in names if getattr(other, name) is not getattr(sampler, name)]
    assert other.guidance == guidance
    assert different == ["guidance"]
    with pytest.raises(ValueError, match=rf"speed does not apply to {type(sampler).__name__}, whose arguments are "):
        sampler.replace(speed=2)
    with pytest.raises(ValueError, match="steps must be at least 1|steps_per_patch must be at least 1"):
        sampler.replace(**{"steps_per_patch" if "order" in names else "steps": 0})


class Unfinished(ImageSampler):
    """Walk that stops before the end; its argument is not stored."""

    def __init__(self, steps: int = 2):
        self.levels = steps

    def walk(self, start):
        yield Frame(start.x_t, torch.ones(len(start.x_t), *GRID), 1.0)
        yield Frame(start.x_t, torch.full((len(start.x_t), *GRID), 0.5), 0.5)


def test_a_sampler_that_does_not_store_an_argument_cannot_be_copied():
    assert Unfinished().replace(steps=3).levels == 3
    with pytest.raises(ValueError, match="Unfinished must store its constructor argument steps as an attribute"):
        Unfinished().replace()


def test_a_walk_that_does_not_end_is_an_error():
    with pytest.raises(ValueError, match=r"Unfinished.walk must end at s = 0, got 0.5: yield the finished images last"):
        run(Unfinished(), GAUSSIAN)


def test_the_last_frame_has_the_known_pixels():
    image, known = random_images(3), torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    *_, final = frames(Sampler(AsyncPatch(), DDIM(1.0), 4), GAUSSIAN, image=image, known=known)
    assert torch.equal(final.x_t[known[:, None]], image[known[:, None]])


def test_batches_are_split_with_everything_that_belongs_to_an_image():
    levels, known = torch.rand(5, 2, 2), torch.rand(5, 4, 4) < 0.5
    parts = list(ImageBatch(range(5), [4, 3, 2, 1, 0], random_images(5), known, levels).split(2))
    assert [part.seeds for part in parts] == [[0, 1], [2, 3], [4]]
    assert [part.labels for part in parts] == [[4, 3], [2, 1], [0]]
    assert torch.equal(torch.cat([part.image for part in parts]), random_images(5))
    assert torch.equal(torch.cat([part.known for part in parts]), known)
    assert torch.equal(torch.cat([part.levels for part in parts]), levels)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        next(ImageBatch([0]).split(0))
