import pytest
import torch

from asyncdiff.denoising.oracles import GaussianOracle, random_gaussian
from asyncdiff.denoising.validation import HELD_OUT_ERRORS, held_out_errors, matched_maps
from asyncdiff.denoising.weightings import Velocity
from asyncdiff.noise.level_samplers import Shared
from asyncdiff.randomness import per_image, seeded
from asyncdiff.training.image_mean import ImageMean


def test_constant_and_heterogeneous_maps_have_the_same_levels():
    varied, constant = matched_maps(4000, (4, 4), seeded(0))
    assert constant.t.shape == (4000, 1, 1)
    assert constant.t.mean().item() == pytest.approx(varied.t.mean().item(), abs=0.02)
    assert constant.t.std().item() == pytest.approx(varied.t.std().item(), rel=0.05)
    assert (varied.t.flatten(1) == constant.t[:, 0]).any(1).all()


def test_error_gap_is_zero_for_independent_patches():
    """With independent pixels an exact denoiser's error depends on a patch's own level only."""
    n = 4000
    mean, cov = torch.zeros(16), 0.5 * torch.eye(16)
    oracle = GaussianOracle(mean, cov, (2, 2))
    x = oracle.sample(n, (1, 4, 4), seeded(3))
    levels = Shared()(n, (2, 2), generator=seeded(1))
    values = held_out_errors(oracle, x, levels, Velocity(), None, seeded(2))
    assert tuple(values) == HELD_OUT_ERRORS
    gap = values["error_gap"]
    assert abs(gap.mean()) < 4 * gap.std() / n**0.5
    assert torch.equal(gap, values["error_constant"] - values["error_heterogeneous"])


def test_errors_of_an_image_depend_only_on_its_seed():
    mean, cov = random_gaussian(16)
    oracle = GaussianOracle(mean.float(), cov.float(), (2, 2))
    x = oracle.sample(3, (1, 4, 4), seeded(3))

    def errors(rows, seeds):
        generators = per_image(seeds)
        levels = Shared()(len(rows), (2, 2), generator=generators)
        return held_out_errors(oracle, rows, levels, Velocity(), None, generators)

    together, alone = errors(x, [4, 5, 6]), errors(x[1:2], [5])
    for name in HELD_OUT_ERRORS:
        assert torch.allclose(together[name][1:2], alone[name], atol=1e-5)


def test_means_count_every_image_once():
    mean = ImageMean()
    mean.update(torch.ones(3))
    mean.update(torch.zeros(1))
    assert mean.compute().item() == 0.75


def test_means_stay_in_float32_and_show_nan():
    module = torch.nn.ModuleDict({"mean": ImageMean()}).to(torch.bfloat16)
    module["mean"].update(torch.full((300,), 1.01))
    assert module["mean"].compute().item() == pytest.approx(1.01, rel=1e-6)
    module["mean"].update(torch.tensor([torch.nan]))
    assert module["mean"].compute().isnan()
