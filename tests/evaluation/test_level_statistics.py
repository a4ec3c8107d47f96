"""Statistics of level samplers."""

import pytest
import torch

from asyncdiff.evaluation.figures.level_statistics import measure_levels
from asyncdiff.noise.level_samplers import AlongPath, Independent, Shared, WithCleanPatches
from asyncdiff.noise.orders import CustomOrder
from asyncdiff.noise.paths import AsyncPatch, Ordered
from asyncdiff.randomness import seeded


def test_maps_are_those_of_the_seed_and_fill_the_grid():
    sampler = AlongPath()
    seen = measure_levels("a", sampler, (4, 6), images=32, seed=3)
    assert torch.equal(seen.t, sampler(32, (4, 6), generator=seeded(3)).t)
    shared = measure_levels("b", Shared(), (4, 6), images=32)
    assert shared.grid == (4, 6)
    assert shared.t.shape == (32, 4, 6)
    assert shared.spreads.abs().max() < 1e-6
    assert shared.known.sum() == 0


def test_numbers_of_independent_levels():
    seen = measure_levels("a", Independent(), (16, 16))
    assert seen.means.std().item() == pytest.approx((1 / (12 * 256)) ** 0.5, rel=0.05)  # method.md, section 2
    assert seen.spreads.mean().item() == pytest.approx(12**-0.5, rel=0.01)
    assert seen.below(0.1) == pytest.approx(0.1, abs=0.002)
    assert seen.above(0.9) == pytest.approx(0.1, abs=0.002)


def test_examples_climb_from_clean_to_noise():
    seen = measure_levels("a", AlongPath(), (4, 4), images=1000)
    means = seen.means[seen.examples(10)]
    assert (means.diff() > 0).all()
    torch.testing.assert_close(means, torch.arange(0.05, 1, 0.1), atol=0.05, rtol=0)
    assert len(measure_levels("a", AlongPath(), (4, 4), images=3).examples(10)) == 10


def test_curves_go_from_noise_to_clean():
    curves = measure_levels("a", AlongPath(AsyncPatch(0.5)), (4, 4), images=8).curves(11, 3)
    assert curves.shape == (11, 3, 4, 4)
    assert (curves[0] == 1).all()
    assert (curves[-1] == 0).all()
    assert (curves.diff(dim=0) <= 0).all()
    assert not torch.equal(curves[5, 0], curves[5, 1])


def test_known_patches_are_marked():
    seen = measure_levels("a", WithCleanPatches(AlongPath(), 1.0), (8, 8), images=64)
    assert 0.2 < seen.known.float().mean() < 0.9
    assert (seen.t[seen.known] == 0).all()
    assert seen.path is None
    with pytest.raises(ValueError, match="must have a path to draw curves, got none for a"):
        seen.curves(5, 1)


def test_a_sampler_that_does_not_go_with_the_grid_is_refused():
    with pytest.raises(ValueError, match="has 1x3 values, which do not divide the level map of 4x4 patches into equal blocks"):
        measure_levels("a", AlongPath(Ordered(CustomOrder([[0, 1, 2]]))), (4, 4))
    with pytest.raises(ValueError, match="images must be at least 1"):
        measure_levels("a", AlongPath(), (4, 4), images=0)
