"""Statistics of level samplers: seeds, summary numbers, examples and curves."""

import pytest
import torch

from asyncdiff.evaluation.figures.level_statistics import compute_level_statistics
from asyncdiff.noise.level_samplers import AlongPath, Independent, Shared, WithCleanPatches
from asyncdiff.noise.orders import CustomOrder
from asyncdiff.noise.paths import AsyncPatch, Ordered
from asyncdiff.randomness import seeded


def test_maps_follow_from_the_seed_and_fill_the_grid():
    sampler = AlongPath()
    stats = compute_level_statistics("a", sampler, (4, 6), images=32, seed=3)
    assert torch.equal(stats.t, sampler(32, (4, 6), generator=seeded(3)).t)
    shared = compute_level_statistics("b", Shared(), (4, 6), images=32)
    assert shared.grid == (4, 6)
    assert shared.t.shape == (32, 4, 6)
    assert shared.spreads.abs().max() < 1e-6
    assert shared.known.sum() == 0


def test_summary_numbers_of_independent_levels():
    stats = compute_level_statistics("a", Independent(), (16, 16))
    assert stats.means.std().item() == pytest.approx((1 / (12 * 256)) ** 0.5, rel=0.05)  # method.md, section 2
    assert stats.spreads.mean().item() == pytest.approx(12**-0.5, rel=0.01)
    assert stats.below(0.1) == pytest.approx(0.1, abs=0.002)
    assert stats.above(0.9) == pytest.approx(0.1, abs=0.002)


def test_examples_are_sorted_from_clean_to_noise():
    stats = compute_level_statistics("a", AlongPath(), (4, 4), images=1000)
    means = stats.means[stats.examples(10)]
    assert (means.diff() > 0).all()
    torch.testing.assert_close(means, torch.arange(0.05, 1, 0.1), atol=0.05, rtol=0)
    assert len(compute_level_statistics("a", AlongPath(), (4, 4), images=3).examples(10)) == 10


def test_curves_go_from_noise_to_clean():
    curves = compute_level_statistics("a", AlongPath(AsyncPatch(0.5)), (4, 4), images=8).curves(11, 3)
    assert curves.shape == (11, 3, 4, 4)
    assert (curves[0] == 1).all()
    assert (curves[-1] == 0).all()
    assert (curves.diff(dim=0) <= 0).all()
    assert not torch.equal(curves[5, 0], curves[5, 1])


def test_known_patches_are_marked():
    stats = compute_level_statistics("a", WithCleanPatches(AlongPath(), 1.0), (8, 8), images=64)
    assert 0.2 < stats.known.float().mean() < 0.9
    assert (stats.t[stats.known] == 0).all()
    assert stats.path is None
    with pytest.raises(ValueError, match="curves need a sampler with a path, but a has none"):
        stats.curves(5, 1)


def test_a_sampler_that_does_not_fit_the_grid_is_rejected():
    with pytest.raises(ValueError, match="has 1x3 values, which do not divide the level map of 4x4 patches"):
        compute_level_statistics("a", AlongPath(Ordered(CustomOrder([[0, 1, 2]]))), (4, 4))
    with pytest.raises(ValueError, match="images must be at least 1"):
        compute_level_statistics("a", AlongPath(), (4, 4), images=0)
