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


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_densities_match_histograms_of_drawn_levels(sampler):
    density = exact_density(sampler)(MIDDLES)
    if sampler is SAMPLERS["async"]:
        torch.testing.assert_close(density, -0.5 * (MIDDLES * (1 - MIDDLES)).log())
    assert density.mean().item() == pytest.approx(1, abs=2e-4)
    t = sampler(8192, (8, 8), generator=seeded(0)).t
    drawn = torch.histc(t, 10, 0, 1) / t.numel() * 10
    # Images are independent, but the patches in an image are not: a bin has a standard error of at most 0.033.
    torch.testing.assert_close(drawn, density.reshape(10, -1).mean(1).float(), atol=0.1, rtol=0)


def test_samplers_without_a_known_closed_form_and_subclasses_have_no_density():
    class OtherSampler(Independent):
        def sample(self, source):
            raise NotImplementedError

    class OtherPath(AsyncPatch):
        pass

    for sampler in (
        SumBeta(),
        Gaussian(),
        WithCleanPatches(AlongPath(), clean_patches=RandomBoxes()),
        AlongPath(Ordered(Raster())),
        AlongPath(Floored(AsyncPatch()), FluxProgress()),
        Homogeneous(SumBeta()),
        Homogeneous(AlongPath(Floored(AsyncPatch()))),
        OtherSampler(),
        AlongPath(OtherPath()),
    ):
        assert exact_density(sampler) is None, sampler
