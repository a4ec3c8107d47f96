"""Distributions over what every image of a batch gets for itself, such as a level map or a field."""

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

import torch

from asyncdiff.randomness import Generators, RandomSource

Drawn = TypeVar("Drawn")


class Distribution(ABC, Generic[Drawn]):
    """Distribution with one draw per image, on a grid of patches. Subclasses define `sample`."""

    def __call__(
        self,
        batch: int,
        grid: tuple[int, int],
        *,
        generator: Generators = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Drawn:
        """Draw for `batch` images on a grid of (gh, gw) patches.

        Args:
            batch: number of images.
            grid: (gh, gw) of the level maps.
            generator: one generator for the batch, or one per image; None for torch's global one.
            device: device of the result.
            dtype: floating-point type of the result.

        Returns:
            The draws of all images.
        """
        return self.sample(RandomSource(batch, grid, generator, device, dtype))

    @abstractmethod
    def sample(self, source: RandomSource) -> Drawn:
        """Draw once per image; all randomness must come from `source`."""
