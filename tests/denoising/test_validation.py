"""Errors on held-out images: matched level maps, the gap between them, and means that count every image once."""

import pytest
import torch
from noise.laws import off

from asyncdiff.denoising.oracles import GaussianOracle, random_gaussian
from asyncdiff.denoising.validation import HELD_OUT_ERRORS, held_out_errors, matched_maps
from asyncdiff.denoising.weightings import Velocity
from asyncdiff.noise.level_samplers import Shared
from asyncdiff.randomness import Generators, per_image, seeded
from asyncdiff.training.image_mean import ImageMean


def errors(oracle: GaussianOracle, x: torch.Tensor, generator: Generators) -> dict[str, torch.Tensor]:
    levels = Shared()(len(x), (2, 2), generator=generator)
    return held_out_errors(oracle, x, levels, Velocity(), None, generator)


def test_constant_and_heterogeneous_maps_have_the_same_levels():
    varied, constant = matched_maps(4000, (4, 4), seeded(0))
    assert constant.t.shape == (4000, 1, 1)
    assert constant.t.mean().item() == pytest.approx(varied.t.mean().item(), abs=0.02)
    assert constant.t.std().item() == pytest.approx(varied.t.std().item(), rel=0.05)
    patch = (varied.t.flatten(1) == constant.t[:, 0]).nonzero()[:, 1]
    assert len(patch) == 4000
    assert off(patch, 7.5) < 4  # of a random patch


def test_error_gap_is_zero_for_independent_patches():
    """With independent pixels an exact denoiser's error depends on a patch's own level only."""
    oracle = GaussianOracle(torch.zeros(16), 0.5 * torch.eye(16), (2, 2))
    values = errors(oracle, oracle.sample(4000, (1, 4, 4), seeded(3)), seeded(2))
    assert tuple(values) == HELD_OUT_ERRORS
    assert off(values["error_gap"], 0) < 4
    assert torch.equal(values["error_gap"], values["error_constant"] - values["error_heterogeneous"])


def test_errors_of_an_image_depend_only_on_its_seed():
    mean, cov = random_gaussian(16)
    oracle = GaussianOracle(mean.float(), cov.float(), (2, 2))
    x = oracle.sample(3, (1, 4, 4), seeded(3))
    together, alone = errors(oracle, x, per_image([4, 5, 6])), errors(oracle, x[1:2], per_image([5]))
    for name in HELD_OUT_ERRORS:
        assert torch.allclose(together[name][1:2], alone[name], atol=1e-5)


def test_means_count_every_image_once_in_float32_and_show_nan():
    mean = ImageMean()
    mean.update(torch.ones(3))
    mean.update(torch.zeros(1))
    assert mean.compute().item() == 0.75
    module = torch.nn.ModuleDict({"mean": ImageMean()}).to(torch.bfloat16)
    module["mean"].update(torch.full((300,), 1.01))
    assert module["mean"].compute().item() == pytest.approx(1.01, rel=1e-6)
    module["mean"].update(torch.tensor([torch.nan]))
    assert module["mean"].compute().isnan()
