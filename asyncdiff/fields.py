"""Random fields on the patch grid, each value uniform on [-1, 1]: how the levels within one image scatter."""

from abc import ABC, abstractmethod

import torch

from asyncdiff.randomness import Generators, uniform
from asyncdiff.shapes import LevelMap


class Field(ABC):
    """A random field u whose marginals are U(-1, 1); only the dependence between patches differs."""

    @abstractmethod
    def __call__(
        self,
        batch: int,
        grid: tuple[int, int],
        *,
        generator: Generators = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> LevelMap:
        """`batch` fields on a grid of (gh, gw) patches, in [-1, 1]."""


class IndependentField(Field):
    """Every patch for itself."""

    def __call__(
        self,
        batch: int,
        grid: tuple[int, int],
        *,
        generator: Generators = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> LevelMap:
        """`batch` fields of independent U(-1, 1) values."""
        return 2 * uniform((batch, *grid), generator=generator, device=device, dtype=dtype) - 1
