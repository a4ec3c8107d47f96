"""Closed-form densities against formulas, their integral, and histograms of drawn levels."""

import pytest
import torch

from asyncdiff.evaluation.figures.level_densities import exact_density
from asyncdiff.noise.clean_patches import RandomBoxes
from asyncdiff.noise.fields import BlockwiseField, PerlinField
from asyncdiff.noise.level_samplers import (
    AlongPath,
    Gaussian,
    Homogeneous,
    Independent,
    LevelSampler,
    Perlin,
    Shared,
    SumBeta,
    WithCleanPatches,
)
from asyncdiff.noise.orders import Raster
from asyncdiff.noise.paths import AsyncPatch, Floored, Ordered, Synchronous
from asyncdiff.noise.progress_samplers import FluxProgress
from asyncdiff.randomness import seeded

SAMPLERS = {
    "shared": Shared(),
    "logit-normal": Shared(loc=0.5, scale=0.8),
    "independent": Independent(),
    "async": AlongPath(),
    "half": AlongPath(AsyncPatch(0.5)),
    "synchronous": AlongPath(Synchronous()),
    "spread 0": AlongPath(AsyncPatch(0.0)),
    "blockwise": AlongPath(AsyncPatch(0.8, BlockwiseField())),
    "perlin": AlongPath(AsyncPatch(field=PerlinField())),
    "perlin in the image": Perlin(0.7),
    "floored": AlongPath(Floored(AsyncPatch(0.9), 0.1)),
    "homogeneous": Homogeneous(AlongPath(), 0.4),
}
MIDDLES = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000


def test_the_density_along_async_patch_is_its_formula():
    density = exact_density(AlongPath())
    t = MIDDLES[::100]
    torch.testing.assert_close(density(t), -0.5 * (t * (1 - t)).log())


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_densities_match_histograms_of_drawn_levels(sampler):
    density = exact_density(sampler)(MIDDLES)
    assert density.mean().item() == pytest.approx(1, abs=2e-4)
    t = sampler(8192, (8, 8), generator=seeded(0)).t
    drawn = torch.histc(t, 10, 0, 1) / t.numel() * 10
    # Images are independent, but the patches in an image are not: a bin has a standard error of at most 0.033.
    torch.testing.assert_close(drawn, density.reshape(10, -1).mean(1).float(), atol=0.1, rtol=0)


@pytest.mark.parametrize(
    "sampler",
    [
        SumBeta(),
        Gaussian(),
        WithCleanPatches(AlongPath(), clean_patches=RandomBoxes()),
        AlongPath(Ordered(Raster())),
        AlongPath(Floored(AsyncPatch()), FluxProgress()),
        Homogeneous(SumBeta()),
        Homogeneous(AlongPath(Floored(AsyncPatch()))),
    ],
    ids=lambda s: type(s).__name__,
)
def test_samplers_without_a_known_closed_form_have_no_density(sampler):
    assert exact_density(sampler) is None


def test_a_subclass_does_not_inherit_the_density():
    class OtherSampler(Independent):
        def sample(self, source):
            raise NotImplementedError

    class OtherPath(AsyncPatch):
        pass

    assert issubclass(OtherSampler, LevelSampler)
    assert exact_density(OtherSampler()) is None
    assert exact_density(AlongPath(OtherPath())) is None
