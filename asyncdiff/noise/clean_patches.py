"""Random choices of patches that are given clean: what a network that is to complete images sees in training."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from asyncdiff.checks import within
from asyncdiff.noise.fields import Field, PerlinField
from asyncdiff.noise.masks import Mask
from asyncdiff.randomness import RandomSource
from asyncdiff.shapes import KnownPatches

MASK_SEEDS = 2**20  # drawn masks to choose from


class CleanPatches(ABC):
    """A distribution over sets of known patches."""

    @abstractmethod
    def sample(self, source: RandomSource) -> KnownPatches:
        """True = known, one set per image."""


class RandomBoxes(CleanPatches):
    """A random box is unknown, or only the box is known, with equal chances: halves, squares, frames of all sizes."""

    def sample(self, source: RandomSource) -> KnownPatches:
        """Boxes of uniform random corners, never empty."""
        gh, gw = source.grid
        ends = source.uniform(5)
        rows = _between(ends[:, 0:2], gh)
        columns = _between(ends[:, 2:4], gw)
        inside = rows[:, :, None] & columns[:, None, :]
        return inside ^ (ends[:, 4] < 0.5)[:, None, None]


class RandomRegions(CleanPatches):
    """The patches where a random field is lowest, a share of them that is uniform on [low, high].

    With a coherent field these are irregular regions; with `IndependentField` single patches (SRM's added zeros,
    arXiv:2502.21075; TD-Paint).

    Args:
        field: the field; Perlin noise by default.
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
        """Regions of the field."""
        share = self.low + (self.high - self.low) * source.uniform(1, 1)
        return self.field.sample(source) < 2 * share - 1


class RandomMasks(CleanPatches):
    """One of several masks, with equal chances, drawn on the level map itself.

    Args:
        masks: the masks, see `asyncdiff.noise.masks`; one pixel of a mask is one patch.
    """

    def __init__(self, masks: Sequence[Mask]):
        if not masks:
            raise ValueError("masks must hold at least one mask, got none: try asyncdiff.noise.Half")
        self.masks = list(masks)

    def sample(self, source: RandomSource) -> KnownPatches:
        """The chosen masks; those that are drawn anew for every image, which takes them milliseconds each."""
        choice = (source.uniform() * len(self.masks)).long().clamp(max=len(self.masks) - 1)
        if not any(mask.drawn for mask in self.masks):
            return torch.stack([mask(*source.grid) for mask in self.masks]).to(source.device)[choice]
        seeds = (source.uniform() * MASK_SEEDS).long()
        chosen = [self.masks[k](*source.grid, seed=s) for k, s in zip(choice.tolist(), seeds.tolist(), strict=True)]
        return torch.stack(chosen).to(source.device)


class MixedCleanPatches(CleanPatches):
    """One of several contexts, with equal chances for every image.

    Args:
        contexts: what to choose from.
    """

    def __init__(self, contexts: Sequence[CleanPatches]):
        if not contexts:
            raise ValueError("contexts must hold at least one context, got none: try asyncdiff.noise.RandomBoxes")
        self.contexts = list(contexts)

    def sample(self, source: RandomSource) -> KnownPatches:
        """The chosen sets; all are drawn, so that an image's later draws do not depend on the choice."""
        sets = torch.stack([context.sample(source) for context in self.contexts])
        choice = (source.uniform() * len(sets)).long().clamp(max=len(sets) - 1)
        return sets[choice, torch.arange(source.batch, device=sets.device)]


def _between(ends: torch.Tensor, side: int) -> torch.Tensor:
    """(b, side): True from the lower to the upper of two random places, both included."""
    places = (ends * side).floor().sort(1).values
    index = torch.arange(side, device=ends.device)
    return (index >= places[:, :1]) & (index <= places[:, 1:])
