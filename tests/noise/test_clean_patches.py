"""Laws of random clean patches: which patches are known, and how often."""

import math
from itertools import product

import pytest
import torch
from noise.laws import off, rebuilt, refusals
from scipy import stats

from asyncdiff.noise.clean_patches import CleanPatches, MixedCleanPatches, RandomBoxes, RandomMasks, RandomRegions
from asyncdiff.noise.fields import BlockwiseField, IndependentField, PerlinField
from asyncdiff.noise.masks import Extreme, Half, Square, Wide
from asyncdiff.randomness import RandomSource, per_image, seeded

N = 20_000
DISTRIBUTIONS = {
    "boxes": RandomBoxes(),
    "regions": RandomRegions(),
    "blocks": RandomRegions(BlockwiseField(), low=0.2, high=0.6),
    "single patches": RandomRegions(IndependentField()),
    "masks": RandomMasks([Half(), Half("top"), Square(), Extreme()]),
    "mixed": MixedCleanPatches([RandomBoxes(), RandomRegions(IndependentField()), RandomMasks([Half()])]),
}


def draw(clean_patches: CleanPatches, count: int, grid: tuple[int, int]) -> torch.Tensor:
    return clean_patches.sample(RandomSource(count, grid, seeded(0)))


@pytest.mark.parametrize("clean_patches", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_clean_patches_of_an_image_depend_only_on_its_seed(clean_patches):
    for grid in ((1, 1), (3, 5), (1, 7), (4, 4)):
        together = clean_patches.sample(RandomSource(4, grid, per_image([1, 2, 3, 4])))
        assert together.dtype == torch.bool
        assert together.shape == (4, *grid)
        assert torch.equal(together[2:3], rebuilt(clean_patches).sample(RandomSource(1, grid, per_image([3]))))


def test_boxes_have_uniform_corners_and_two_polarities():
    """Chi-square over the sets of 2x3 patches; two corners and the polarity give 2^2 3^2 2 = 72 equal cases."""
    cases = torch.zeros(72, 2, 3, dtype=torch.bool)
    for case, (r0, r1, c0, c1, outside) in zip(
        cases, product(range(2), range(2), range(3), range(3), (0, 1)), strict=True
    ):
        case[min(r0, r1) : max(r0, r1) + 1, min(c0, c1) : max(c0, c1) + 1] = True
        case ^= bool(outside)
    expected, drawn = (
        (sets.flatten(1) @ 2 ** torch.arange(6.0)).long().bincount(minlength=64)
        for sets in (cases.float(), draw(RandomBoxes(), N, (2, 3)).float())
    )
    possible = expected > 0
    assert not drawn[~possible].any()
    assert stats.chisquare(drawn[possible], expected[possible].double() * N / 72).pvalue > 1e-3


@pytest.mark.parametrize("field", [IndependentField(), BlockwiseField(), PerlinField()], ids=lambda f: type(f).__name__)
def test_known_probability_of_every_patch_is_the_mean_share(field):
    """The mean of a share that is uniform on [low, high], at every patch; at 4 standard errors."""
    for low, high in ((0.0, 1.0), (0.2, 0.2), (0.5, 0.9)):
        assert off(draw(RandomRegions(field, low, high), N, (3, 4)), (low + high) / 2) < 4


def test_shares_of_regions_are_uniform():
    """With a field whose values cover the range evenly, the share of known patches is the drawn one, to 1 / D."""
    share = draw(RandomRegions(PerlinField(within_image=True), 0.2, 0.7), N, (8, 8)).double().mean((1, 2))
    assert stats.kstest(share.numpy(), stats.uniform(0.2, 0.5).cdf).statistic < 1 / 64 / 0.5 + 1.95 / math.sqrt(N)
    assert share.min() >= 0.2 - 1 / 64
    assert share.max() <= 0.7 + 1 / 64


def test_shares_0_and_1_select_no_or_all_patches():
    assert draw(RandomRegions(low=1.0), 500, (4, 4)).all()
    assert not draw(RandomRegions(high=0.0), 500, (4, 4)).any()


def test_masks_and_distributions_are_chosen_with_equal_probability():
    masks = [Half(), Half("right"), Half("top"), Half("bottom"), Square()]
    for clean_patches in (RandomMasks(masks), MixedCleanPatches([RandomMasks([mask]) for mask in masks])):
        known = draw(clean_patches, N, (4, 4))
        counts = [int((known == mask(4, 4)).all(2).all(1).sum()) for mask in masks]
        assert sum(counts) == N
        assert stats.chisquare(counts).pvalue > 1e-3


def test_random_masks_draw_a_mask_for_every_image():
    known = draw(RandomMasks([Wide(), Square()]), 40, (8, 8))
    fixed = (known == Square()(8, 8)).flatten(1).all(1)
    assert 8 <= fixed.sum() <= 32
    assert len(known[~fixed].flatten(1).unique(dim=0)) > 0.8 * (~fixed).sum()


test_invalid_arguments_are_refused = refusals(
    {
        "low must lie in [0, 1.0], got -0.1": lambda: RandomRegions(low=-0.1),
        "high must lie in [0.0, 1], got 1.1": lambda: RandomRegions(high=1.1),
        "low must lie in [0, 0.4], got 0.5": lambda: RandomRegions(low=0.5, high=0.4),
        "masks must contain at least one mask": lambda: RandomMasks([]),
        "contexts must contain at least one distribution": lambda: MixedCleanPatches([]),
    }
)
