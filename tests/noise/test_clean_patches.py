"""Laws of random clean patches: which patches are known, and how often."""

import math
from collections import Counter
from itertools import product

import pytest
import torch
from scipy import stats

from asyncdiff.checkpoints import object_config
from asyncdiff.noise.clean_patches import CleanPatches, MixedCleanPatches, RandomBoxes, RandomMasks, RandomRegions
from asyncdiff.noise.fields import BlockwiseField, IndependentField, PerlinField
from asyncdiff.noise.masks import Extreme, Half, Square
from asyncdiff.randomness import RandomSource, per_image, seeded

N = 20_000
CONTEXTS = {
    "boxes": RandomBoxes(),
    "blobs": RandomRegions(),
    "blocks": RandomRegions(BlockwiseField(), low=0.2, high=0.6),
    "single patches": RandomRegions(IndependentField()),
    "masks": RandomMasks([Half(), Half("top"), Square(), Extreme()]),
    "mixed": MixedCleanPatches([RandomBoxes(), RandomRegions(IndependentField()), RandomMasks([Half()])]),
}
every_context = pytest.mark.parametrize("clean_patches", CONTEXTS.values(), ids=CONTEXTS)


def draw(clean_patches: CleanPatches, count: int, grid: tuple[int, int]) -> torch.Tensor:
    return clean_patches.sample(RandomSource(count, grid, seeded(0)))


def off(values: torch.Tensor, expected: float) -> float:
    """Distance of the mean of `values` (n,) from its expectation, in standard errors."""
    values = values.double()
    return abs(values.mean().item() - expected) / (values.std().item() / math.sqrt(len(values)))


@every_context
def test_samples_have_one_flag_per_patch(clean_patches):
    for grid in ((1, 1), (3, 5), (1, 7), (4, 4)):
        known = draw(clean_patches, 50, grid)
        assert known.dtype == torch.bool
        assert known.shape == (50, *grid)


@every_context
def test_clean_patches_of_an_image_depend_only_on_its_seed(clean_patches):
    together = clean_patches.sample(RandomSource(4, (4, 5), per_image([1, 2, 3, 4])))
    assert torch.equal(together[2:3], clean_patches.sample(RandomSource(1, (4, 5), per_image([3]))))


def test_boxes_have_uniform_corners_and_two_polarities():
    """Chi-square over the sets of 2x3 patches; two corners and the polarity give 2^2 3^2 2 = 72 equal cases."""
    cases = Counter()
    for r0, r1, c0, c1, outside in product(range(2), range(2), range(3), range(3), (False, True)):
        box = torch.zeros(2, 3, dtype=torch.bool)
        box[min(r0, r1) : max(r0, r1) + 1, min(c0, c1) : max(c0, c1) + 1] = True
        cases[tuple((box ^ outside).flatten().tolist())] += 1
    drawn = Counter(tuple(known.flatten().tolist()) for known in draw(RandomBoxes(), N, (2, 3)))
    assert set(drawn) == set(cases)
    expected = [N * cases[case] / 72 for case in cases]
    assert stats.chisquare([drawn[case] for case in cases], expected).pvalue > 1e-3


@pytest.mark.parametrize("field", [IndependentField(), BlockwiseField(), PerlinField()], ids=lambda f: type(f).__name__)
def test_known_probability_of_every_patch_is_the_mean_share(field):
    """The mean of a share that is uniform on [low, high], at every patch; at 4 standard errors."""
    for low, high in ((0.0, 1.0), (0.2, 0.2), (0.5, 0.9)):
        known = draw(RandomRegions(field, low, high), N, (3, 4))
        for row, column in product(range(3), range(4)):
            assert off(known[:, row, column], (low + high) / 2) < 4


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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomRegions(low=-0.1), r"low must lie in .*got -0.1"),
        (lambda: RandomRegions(high=1.1), r"high must lie in .*got 1.1"),
        (lambda: RandomRegions(low=0.5, high=0.4), r"low must lie in \[0, 0.4\], got 0.5"),
        (lambda: RandomMasks([]), "masks must contain at least one mask"),
        (lambda: MixedCleanPatches([]), "contexts must contain at least one distribution"),
    ],
)
def test_invalid_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@every_context
def test_a_rebuilt_object_draws_the_same_patches(clean_patches):
    again = object_config.build(object_config.describe(clean_patches))
    assert torch.equal(draw(again, 20, (4, 6)), draw(clean_patches, 20, (4, 6)))
