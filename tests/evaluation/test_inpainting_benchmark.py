import pytest
import torch
from torch import nn

from asyncdiff.denoising.denoiser import Denoiser
from asyncdiff.evaluation import FrechetDistance, as_features
from asyncdiff.evaluation.inpainting_benchmark import (
    CountingDenoiser,
    InpaintingBenchmark,
    InpaintingResults,
    ValidationImages,
    shares,
)
from asyncdiff.noise.masks import MASKS, Extreme, Half, Lines, Thin
from asyncdiff.noise.processes import RectifiedFlow
from asyncdiff.sampling.guidance import ClassifierFree
from asyncdiff.sampling.repaint import RePaint
from asyncdiff.sampling.samplers import Autoregressive, ImageSampler, Sampler
from asyncdiff.sampling.solvers import DDIM, Heun

pytestmark = pytest.mark.filterwarnings("ignore:the Fréchet distance of 6 fake images")
THIN = ("thin", Thin())
HALF = ("half", Half())


class SquaredError(nn.Module):
    """A distance that needs no weights."""

    name = "squared_error"

    def forward(self, images, others):
        return (images - others).square().mean((1, 2, 3))


class Filled(ImageSampler):
    """Fills the unknown part with the truth, plus a number times the image's noise; counts nothing."""

    def __init__(self, noise: float = 0.0, loose: bool = False):
        self.noise, self.loose = noise, loose

    def walk(self, start):
        raise NotImplementedError

    def __call__(self, denoiser, *, seeds, shape, image, known, **rest):
        noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds])
        where = torch.ones_like(known) if self.loose else ~known
        return torch.where(where[:, None], image + self.noise * noise, image)


@pytest.fixture
def denoiser(small_dit) -> Denoiser:
    return Denoiser(small_dit.float(), RectifiedFlow())


@pytest.fixture
def given() -> ValidationImages:
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return ValidationImages(images, [0, 3, 4, 7, 9, 12], torch.arange(6))


def bench(**options) -> InpaintingBenchmark:
    metric = FrechetDistance(as_features(nn.Flatten(), name="pixels", dim=64))
    generator = torch.Generator().manual_seed(1)
    metric.update(torch.rand(200, 1, 8, 8, generator=generator) * 2 - 1, real=True)
    return InpaintingBenchmark(**{"lpips": SquaredError(), "frechet": metric, "batch_size": 4, **options})


def test_counting_does_not_change_predictions(denoiser, given):
    t = torch.rand(6, 4, 4, generator=torch.Generator().manual_seed(2))
    counted = CountingDenoiser(denoiser)
    assert torch.equal(counted(given.images, t, given.labels).v, denoiser(given.images, t, given.labels).v)
    assert (counted.rows, counted.patches) == (6, 6 * 16)
    assert counted.null_label == denoiser.null_label
    assert counted.grid((8, 8)) == (4, 4)
    assert counted.network is denoiser.network


@pytest.mark.parametrize(
    ("sampler", "evaluations"),
    [
        (Sampler(steps=7), 7),
        (Sampler(solver=Heun(), steps=3), 5),  # its last step is one of Euler's
        (Sampler(steps=5, guidance=[ClassifierFree(2.0)]), 10),
        (Autoregressive(steps_per_patch=2), 2 * 8),  # half of the 16 patches are known and need no steps
        (RePaint(steps=12, jump=4, resamples=3), 12 + 2 * 2 * 4),  # two segments of 4 steps, each repeated twice
    ],
)
def test_evaluations_per_result(denoiser, given, sampler, evaluations):
    found = bench().evaluate(denoiser, given, HALF, ("s", sampler))
    assert found.evaluations == evaluations
    assert found.patches == evaluations * 16


def test_patches_that_were_not_computed_are_not_counted(denoiser, given):
    """Half of the patches move: between refreshes half of them are computed, with the same results as uncounted."""
    sampler = Sampler(steps=8, refresh=4)
    found = bench().evaluate(denoiser, given, HALF, ("s", sampler))
    assert found.evaluations == 8
    assert found.patches == 3 * 16 + 5 * 8  # all at the first step, and two and six steps later
    known = given.masks(HALF[1])
    counted = bench().inpaint(CountingDenoiser(denoiser), given, known, sampler)
    assert torch.equal(counted, bench().inpaint(denoiser, given, known, sampler))


def test_true_images_have_no_error_and_the_frechet_distance_of_real_images(denoiser, given):
    found = bench(rounds=2).evaluate(denoiser, given, THIN, ("truth", Filled()))
    assert found.lpips.tolist() == [0] * 6
    assert found.diversity.tolist() == [0] * 6
    real = bench().frechet_of_real(given)
    assert found.frechet == pytest.approx([real, real])
    assert real > 1
    assert found.evaluations == 0


def test_error_and_diversity_are_those_of_the_noise(denoiser):
    """Noise of variance s^2 on a share u of the pixels: s^2 u from the truth, 2 s^2 u between results."""
    given = ValidationImages(torch.zeros(20, 3, 32, 32), range(20))
    found = InpaintingBenchmark(SquaredError(), rounds=3, batch_size=8).evaluate(
        denoiser, given, THIN, ("noise", Filled(0.5))
    )
    unknown = (~given.masks(THIN[1])).double().mean((1, 2))
    torch.testing.assert_close(found.lpips.double(), 0.25 * unknown, rtol=0.3, atol=0)
    assert found.lpips.mean().item() == pytest.approx(0.25 * unknown.mean().item(), rel=0.02)
    assert found.diversity.mean().item() == pytest.approx(0.5 * unknown.mean().item(), rel=0.02)
    assert found.frechet == []


def test_changed_known_values_raise(denoiser, given):
    with pytest.raises(RuntimeError, match="bit for bit, got 1[0-9][0-9] changed ones from loose with half"):
        bench().evaluate(denoiser, given, HALF, ("loose", Filled(0.1, loose=True)))


@pytest.mark.parametrize("mask", ["thin", "wide", "lines", "super_resolution"])
def test_results_depend_only_on_the_index_in_the_split(denoiser, given, mask):
    sampler = ("s", Sampler(solver=DDIM(1.0), steps=3))
    cards = [bench(batch_size=n).evaluate(denoiser, given, (mask, MASKS[mask]), sampler) for n in (6, 4)]
    torch.testing.assert_close(cards[0].lpips, cards[1].lpips, rtol=1e-4, atol=1e-6)
    assert cards[0].frechet == pytest.approx(cards[1].frechet, rel=1e-4)
    alone = ValidationImages(given.images[2:3], given.indices[2:3], given.labels[2:3])
    lone = InpaintingBenchmark(SquaredError()).evaluate(denoiser, alone, (mask, MASKS[mask]), sampler)
    torch.testing.assert_close(lone.lpips, cards[0].lpips[2:3], rtol=1e-4, atol=1e-6)
    other = bench(seed=1).evaluate(denoiser, given, (mask, MASKS[mask]), sampler)
    assert (other.lpips != cards[0].lpips).all()


def test_labels_condition_the_results_if_given(denoiser, given):
    unlabeled = ValidationImages(given.images, given.indices)
    sampler = ("s", Sampler(steps=2))
    conditional, unconditional = (bench().evaluate(denoiser, one, HALF, sampler).lpips for one in (given, unlabeled))
    assert (conditional != unconditional).all()


def test_training_mode_is_restored(denoiser, given):
    denoiser.train()
    bench().evaluate(denoiser, given, HALF, ("s", Sampler(steps=1)))
    assert denoiser.training
    assert denoiser.network.training


def test_progress_is_reported_per_batch(denoiser, given):
    done = []
    bench(rounds=2).evaluate(denoiser, given, HALF, ("s", Filled()), progress=done.append)
    assert done == [4, 4, 2, 2]


def test_shares_of_a_mask():
    assert shares(Extreme()(8, 8)[None], (4, 4)) == {"unknown": 0.75, "known_patches": 0.25}
    assert shares(Lines()(8, 8)[None], (4, 4)) == {"unknown": 0.5, "known_patches": 0}
    assert shares(Lines()(8, 8)[None], (8, 8)) == {"unknown": 0.5, "known_patches": 0.5}


def test_a_table_has_the_columns_that_were_measured(denoiser, given):
    row = bench().evaluate(denoiser, given, HALF, ("s", Sampler(steps=2)))
    part = {"half": shares(given.masks(HALF[1]), (4, 4))}
    full = InpaintingResults([row], part, 6, 1, 3.0, "lpips_alex", "pixels", 64, 200).table()
    head = "| mask | unknown | sampler | Fréchet, pixels | lpips_alex to the truth | evaluations | patches | seconds |"
    assert full.startswith(head)
    assert f"| half | 50 % | s | {row.frechet[0]:.2f} | {row.lpips.mean():.4f} ± " in full
    assert "the 6 true images lie at 3.00" in full
    assert "no more images than dimensions: biased upwards" in full
    bare = InpaintingResults([row], part, 6, 1).table()
    assert bare.startswith("| mask | unknown | sampler | evaluations | patches | seconds |")
    assert "Fréchet" not in bare
