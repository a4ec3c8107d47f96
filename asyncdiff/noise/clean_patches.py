"""Random sets of clean patches for training a network to inpaint and outpaint (see `WithCleanPatches`)."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor

from asyncdiff.checks import within
from asyncdiff.devices import constant, to_device
from asyncdiff.noise.distribution import Distribution
from asyncdiff.noise.fields import Field, PerlinField
from asyncdiff.noise.masks import Mask
from asyncdiff.randomness import RandomSource
from asyncdiff.shapes import KnownPatches

MASK_SEED_COUNT = 2**20  # number of different masks drawn from a random `Mask`


class CleanPatches(Distribution[KnownPatches]):
    """Distribution over sets of clean patches, True = known."""


class RandomBoxes(CleanPatches):
    """Random box: with equal probability the only unknown or the only known part of the image.

    Its corners are uniform, so that halves, squares and frames of all sizes occur; it is never empty.
    """

    def sample(self, source: RandomSource) -> KnownPatches:
        gh, gw = source.grid
        ends = source.uniform(5)
        rows = _mask_between(ends[:, 0:2], gh)
        columns = _mask_between(ends[:, 2:4], gw)
        inside = rows[:, :, None] & columns[:, None, :]
        return inside ^ (ends[:, 4] < 0.5)[:, None, None]


class RandomRegions(CleanPatches):
    """Random regions: the patches where a random field is lowest. Their expected share is uniform on [low, high].

    A coherent field gives irregular regions, `IndependentField` scattered single patches (SRM's added zeros,
    arXiv:2502.21075; TD-Paint).

    Args:
        field: random field; default: Perlin noise.
        low: smallest expected share of known patches, in [0, 1].
        high: largest expected share of known patches, in [low, 1].
    """

    def __init__(self, field: Field | None = None, low: float = 0.0, high: float = 1.0):
        within("low", low, 0, high, "low and high bound the share of known patches")
        within("high", high, low, 1, "low and high bound the share of known patches")
        self.field = field or PerlinField()
        self.low = low
        self.high = high

    def sample(self, source: RandomSource) -> KnownPatches:
        share = self.low + (self.high - self.low) * source.uniform(1, 1)
        return self.field.sample(source) < 2 * share - 1


class RandomMasks(CleanPatches):
    """One of several inpainting masks per image, with equal probability.

    Args:
        masks: masks from `asyncdiff.noise.masks`, drawn at the size of the level map, so that each mask pixel is one
            patch. Masks with random strokes are computed separately for each image, which takes milliseconds.
    """

    def __init__(self, masks: Sequence[Mask]):
        if not masks:
            raise ValueError(
                "masks must contain at least one mask, got none: use [asyncdiff.noise.Half()], for example"
            )
        self.masks = list(masks)

    def sample(self, source: RandomSource) -> KnownPatches:
        if not any(mask.seed_dependent for mask in self.masks):
            return _all_masks(self, tuple(source.grid), source.device)[self._choose(source)]
        # The host computes these masks, so it draws the numbers, too: reading them from a GPU would make it wait.
        host = replace(source, device="cpu")
        choice, seeds = self._choose(host), (host.uniform() * MASK_SEED_COUNT).long()
        chosen = [self.masks[k](*source.grid, seed=s) for k, s in zip(choice.tolist(), seeds.tolist(), strict=True)]
        return to_device(torch.stack(chosen), source.device)

    def _choose(self, source: RandomSource) -> Tensor:
        """Draw the number of a mask for every image."""
        return (source.uniform() * len(self.masks)).long().clamp(max=len(self.masks) - 1)


@constant
def _all_masks(masks: RandomMasks, grid: tuple[int, int], device: torch.device) -> Bool[Tensor, "masks gh gw"]:
    return torch.stack([mask(*grid) for mask in masks.masks]).to(device)


class MixedCleanPatches(CleanPatches):
    """One of several distributions of clean patches per image, with equal probability.

    Args:
        contexts: distributions to choose from, at least one.
    """

    def __init__(self, contexts: Sequence[CleanPatches]):
        if not contexts:
            raise ValueError(
                "contexts must contain at least one distribution, got none: use [asyncdiff.noise.RandomBoxes()], for "
                "example"
            )
        self.contexts = list(contexts)

    def sample(self, source: RandomSource) -> KnownPatches:
        # Draw from every distribution, so that an image's later random numbers do not depend on the choice.
        sets = torch.stack([context.sample(source) for context in self.contexts])
        choice = (source.uniform() * len(sets)).long().clamp(max=len(sets) - 1)
        return sets[choice, torch.arange(source.batch, device=sets.device)]


def _mask_between(ends: torch.Tensor, side: int) -> torch.Tensor:
    """Return a mask (b, side) that is True from the lower to the upper of two random positions, both included."""
    positions = (ends * side).floor().sort(1).values
    index = torch.arange(side, device=ends.device)
    return (index >= positions[:, :1]) & (index <= positions[:, 1:])
