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
    mask_fractions,
)
from asyncdiff.noise.masks import MASKS, Extreme, Half, Lines, Thin
from asyncdiff.noise.processes import RectifiedFlow
from asyncdiff.sampling.guidance import ClassifierFree
from asyncdiff.sampling.repaint import RePaint
from asyncdiff.sampling.samplers import Autoregressive, ImageSampler, Sampler
from asyncdiff.sampling.solvers import DDIM, Heun
from asyncdiff.sampling.trajectories import Frame

pytestmark = pytest.mark.filterwarnings("ignore:the Fréchet distance of 6 fake images")
THIN = ("thin", Thin())
HALF = ("half", Half())


class SquaredError(nn.Module):
    """Distance between images that does not need weights."""

    name = "squared_error"

    def forward(self, images, others):
        return (images - others).square().mean((1, 2, 3))


class NoisyTruth(ImageSampler):
    """Fills unknown pixels with the truth plus scaled noise, without network evaluations; may change known pixels."""

    def __init__(self, noise: float = 0.0, change_known: bool = False):
        self.noise, self.change_known = noise, change_known

    def walk(self, start):
        raise NotImplementedError

    def frames(self, denoiser, *, seeds, shape, image, known, **rest):
        noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds])
        changed = torch.ones_like(known) if self.change_known else ~known
        x = torch.where(changed[:, None], image + self.noise * noise, image)
        yield Frame(x, torch.zeros(len(x), 1, 1), 0.0)


@pytest.fixture
def denoiser(small_dit) -> Denoiser:
    return Denoiser(small_dit.float(), RectifiedFlow())


@pytest.fixture
def data() -> ValidationImages:
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return ValidationImages(images, [0, 3, 4, 7, 9, 12], range(6))


def bench(**options) -> InpaintingBenchmark:
    metric = FrechetDistance(as_features(nn.Flatten(), name="pixels", dim=64))
    generator = torch.Generator().manual_seed(1)
    metric.update(torch.rand(200, 1, 8, 8, generator=generator) * 2 - 1, real=True)
    return InpaintingBenchmark(**{"lpips": SquaredError(), "frechet": metric, "batch_size": 4, **options})


def test_counting_does_not_change_predictions(denoiser, data):
    t = torch.rand(6, 4, 4, generator=torch.Generator().manual_seed(2))
    counting = CountingDenoiser(denoiser)
    labels = torch.arange(6)
    assert torch.equal(counting(data.images, t, labels).v, denoiser(data.images, t, labels).v)
    assert (counting.evaluations, counting.patches) == (6, 6 * 16)
    assert counting.null_label == denoiser.null_label
    assert counting.grid((8, 8)) == (4, 4)
    assert counting.network is denoiser.network


@pytest.mark.parametrize(
    ("sampler", "evaluations"),
    [
        (Sampler(steps=7), 7),
        (Sampler(solver=Heun(), steps=3), 5),  # the last step is an Euler step
        (Sampler(steps=5, guidance=[ClassifierFree(2.0)]), 10),
        (Autoregressive(steps_per_patch=2), 2 * 8),  # half of the 16 patches are known and need no steps
        (RePaint(steps=12, jump=4, resamples=3), 12 + 2 * 2 * 4),  # two segments of 4 steps, each repeated twice
    ],
)
def test_evaluations_per_result_are_counted(denoiser, data, sampler, evaluations):
    found = bench().evaluate(denoiser, data, HALF, ("s", sampler))
    assert found.evaluations == evaluations
    assert found.patches == evaluations * 16


def test_only_computed_patches_are_counted(denoiser, data):
    """Half of the patches move: only these are computed between refreshes, and counting does not change results."""
    sampler = Sampler(steps=8, refresh=4)
    found = bench().evaluate(denoiser, data, HALF, ("s", sampler))
    assert found.evaluations == 8
    assert found.patches == 3 * 16 + 5 * 8  # all at the first step, and two and six steps later
    known = data.masks(HALF[1])
    counted = bench().inpaint(CountingDenoiser(denoiser), data, known, sampler)
    assert torch.equal(counted, bench().inpaint(denoiser, data, known, sampler))


def test_true_images_have_no_error_and_the_frechet_distance_of_real_images(denoiser, data):
    found = bench(rounds=2).evaluate(denoiser, data, THIN, ("truth", NoisyTruth()))
    assert found.lpips.tolist() == [0] * 6
    assert found.diversity.tolist() == [0] * 6
    real = bench().frechet_of_real(data)
    assert found.frechet == pytest.approx([real, real])
    assert real > 1
    assert found.evaluations == 0


def test_error_and_diversity_match_the_variance_of_the_noise(denoiser):
    """Noise of variance s^2 on a fraction u of the pixels: s^2 u from the truth, 2 s^2 u between results."""
    data = ValidationImages(torch.zeros(20, 3, 32, 32), range(20))
    found = InpaintingBenchmark(SquaredError(), rounds=3, batch_size=8).evaluate(
        denoiser, data, THIN, ("noise", NoisyTruth(0.5))
    )
    unknown = (~data.masks(THIN[1])).double().mean((1, 2))
    torch.testing.assert_close(found.lpips.double(), 0.25 * unknown, rtol=0.3, atol=0)
    assert found.lpips.mean().item() == pytest.approx(0.25 * unknown.mean().item(), rel=0.02)
    assert found.diversity.mean().item() == pytest.approx(0.5 * unknown.mean().item(), rel=0.02)
    assert found.frechet == []


def test_changed_known_values_raise_an_error(denoiser, data):
    with pytest.raises(RuntimeError, match="loose changed 1[0-9][0-9] known values with half, but must preserve"):
        bench().evaluate(denoiser, data, HALF, ("loose", NoisyTruth(0.1, change_known=True)))


@pytest.mark.parametrize("mask", ["thin", "super_resolution"])
def test_results_depend_only_on_the_index_in_the_split(denoiser, data, mask):
    sampler = ("s", Sampler(solver=DDIM(1.0), steps=3))
    cards = [bench(batch_size=n).evaluate(denoiser, data, (mask, MASKS[mask]), sampler) for n in (6, 4)]
    torch.testing.assert_close(cards[0].lpips, cards[1].lpips, rtol=1e-4, atol=1e-6)
    assert cards[0].frechet == pytest.approx(cards[1].frechet, rel=1e-4)
    scores = InpaintingBenchmark(SquaredError()).evaluate(denoiser, data.select([2]), (mask, MASKS[mask]), sampler)
    torch.testing.assert_close(scores.lpips, cards[0].lpips[2:3], rtol=1e-4, atol=1e-6)
    other = bench(seed=1).evaluate(denoiser, data, (mask, MASKS[mask]), sampler)
    assert (other.lpips != cards[0].lpips).all()


def test_labels_condition_the_results_if_data(denoiser, data):
    unlabeled = ValidationImages(data.images, data.indices)
    sampler = ("s", Sampler(steps=2))
    conditional, unconditional = (bench().evaluate(denoiser, one, HALF, sampler).lpips for one in (data, unlabeled))
    assert (conditional != unconditional).all()


def test_training_mode_is_restored_and_progress_reported_per_batch(denoiser, data):
    denoiser.train()
    done = []
    bench(rounds=2).evaluate(denoiser, data, HALF, ("s", Sampler(steps=1)), progress=done.append)
    assert denoiser.training
    assert denoiser.network.training
    assert done == [4, 4, 2, 2]


def test_fractions_of_unknown_pixels_and_known_patches():
    assert mask_fractions(Extreme()(8, 8)[None], (4, 4)) == {"unknown": 0.75, "known_patches": 0.25}
    assert mask_fractions(Lines()(8, 8)[None], (4, 4)) == {"unknown": 0.5, "known_patches": 0}
    assert mask_fractions(Lines()(8, 8)[None], (8, 8)) == {"unknown": 0.5, "known_patches": 0.5}


def test_the_table_has_only_columns_of_computed_scores(denoiser, data):
    row = bench().evaluate(denoiser, data, HALF, ("s", Sampler(steps=2)))
    fractions = {"half": mask_fractions(data.masks(HALF[1]), (4, 4))}
    full = InpaintingResults([row], fractions, 6, 1, 3.0, "lpips_alex", "pixels", 64, 200).table()
    head = "| mask | unknown | sampler | Fréchet, pixels | lpips_alex to the truth | evaluations | patches | seconds |"
    assert full.startswith(head)
    assert f"| half | 50 % | s | {row.frechet[0]:.2f} | {row.lpips.mean():.4f} ± " in full
    assert "the 6 true images lie at 3.00" in full
    assert "no more images than dimensions: biased upwards" in full
    without_metrics = InpaintingResults([row], fractions, 6, 1).table()
    assert without_metrics.startswith("| mask | unknown | sampler | evaluations | patches | seconds |")
    assert "Fréchet" not in without_metrics
