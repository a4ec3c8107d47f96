import math

import pytest
import torch
from scipy import stats

from asyncdiff.levels import AlongPath, Independent, Shared
from asyncdiff.paths import AsyncPatch, Floored, Synchronous
from asyncdiff.randomness import Source, per_image, seeded

SAMPLERS = [Shared(), Shared(loc=0.5, scale=1.0), Independent(), AlongPath(), AlongPath(Floored(Synchronous(), 0.01))]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_levels_lie_between_floor_and_one(sampler):
    t = sampler(4096, (4, 4), generator=seeded(0)).t
    assert t.min() >= sampler.t_min
    assert t.max() <= 1


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_slopes_come_with_paths_only(sampler):
    draw = sampler(8, (4, 4), generator=seeded(0))
    assert (draw.slope is not None) == sampler.has_slopes
    if draw.distinct is not None:
        assert torch.equal(draw.distinct.values[draw.distinct.index], draw.t)


@pytest.mark.parametrize("sampler", [Shared(), Independent(), AlongPath(Synchronous())])
def test_uniform_marginals(sampler):
    draws = [sampler(50, (2, 2), generator=seeded(k)).t[0, 0, 0].item() for k in range(3000)]
    assert stats.kstest(draws, "uniform").pvalue > 0.01


def test_logit_normal_marginal():
    t = Shared(loc=0.7, scale=1.3)(20_000, (2, 2), generator=seeded(0)).t.flatten().double()
    assert stats.kstest(t.logit().numpy(), stats.norm(0.7, 1.3).cdf).pvalue > 0.01


def test_independent_levels_never_see_a_nearly_clean_image():
    """The image's mean has a standard deviation of 1 / sqrt(12 patches): 0.018 at 256 patches."""
    mean = Independent()(4000, (16, 16), generator=seeded(0)).t.mean((1, 2))
    assert mean.std().item() == pytest.approx(1 / math.sqrt(12 * 256), rel=0.05)
    assert mean.min() > 0.4


def test_controlled_levels_see_every_mean():
    mean = AlongPath(AsyncPatch())(4000, (16, 16), generator=seeded(0)).t.mean((1, 2))
    assert stats.kstest(mean.numpy(), "uniform").statistic < 0.02  # it deviates from s by at most 0.5 / sqrt(3 * 256)


def test_progress_is_stratified_over_the_batch():
    s = Source(64, (1, 1), seeded(0)).stratified().sort().values
    assert torch.allclose(s.diff(), torch.full((63,), 1 / 64), atol=1e-6)


def test_the_place_in_the_batch_says_nothing_of_the_level():
    first = torch.stack([Source(8, (1, 1), seeded(k)).stratified() for k in range(4000)])
    for row in first.T:
        assert stats.kstest(row.numpy(), "uniform").pvalue > 1e-3


def test_an_image_s_levels_depend_on_its_seed_only():
    for sampler in SAMPLERS:
        together = sampler(3, (4, 4), generator=per_image([1, 2, 3])).t
        assert torch.equal(together[2:], sampler(1, (4, 4), generator=per_image([3])).t)


def test_rounded_levels_are_few_and_near():
    draw = AlongPath()(512, (4, 4), generator=seeded(0))
    rounded = draw.on_values(256)
    assert len(rounded.distinct.values) == 256
    assert (rounded.t - draw.t).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.equal(rounded.distinct.values[rounded.distinct.index], rounded.t)
    assert rounded.slope is None


def test_rounding_keeps_both_ends():
    values = AlongPath()(8, (2, 2)).on_values(256).distinct.values
    assert values[0] == 0
    assert values[-1] == 1


def test_a_shift_without_a_scale_is_refused():
    with pytest.raises(ValueError, match=r"loc 0\.7 without a scale"):
        Shared(loc=0.7)
