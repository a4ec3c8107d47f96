"""Training distributions over level maps. All are level samplers behind one call, so that they can be ablated."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from asyncdiff.checks import at_least
from asyncdiff.paths import AsyncPatch, Path
from asyncdiff.randomness import Generators, normal, uniform
from asyncdiff.shapes import Distinct, LevelMap, Progress


@dataclass(frozen=True)
class LevelDraw:
    """One training batch of level maps.

    Attributes:
        t: level of every patch, (b, gh, gw), or (b, 1, 1) where an image has one level.
        slope: dt/ds along the path the maps were drawn from; None where the sampler follows no path.
        distinct: the distinct levels and their index, where the sampler knows them; spares the network a sort.
    """

    t: LevelMap
    slope: LevelMap | None = None
    distinct: Distinct | None = None

    def on_values(self, count: int) -> "LevelDraw":
        """The levels rounded to `count` equidistant values from 0 to 1, so that a network needs `count` conditionings.

        The image is then noised at the rounded levels: training stays exact, only the distribution of levels is
        discrete. The slopes are dropped, since the rounded levels no longer lie on the path.
        """
        at_least("count", count, 2, "the levels 0 and 1 are needed")
        if self.distinct is not None and len(self.distinct.values) <= count:
            return LevelDraw(self.t, None, self.distinct)  # few enough as they are
        index = (self.t * (count - 1)).round().long()
        values = torch.arange(count, device=self.t.device, dtype=self.t.dtype) / (count - 1)
        return LevelDraw(values[index], None, Distinct(values, index))


class LevelSampler(ABC):
    """A distribution over level maps.

    Attributes:
        has_slopes: whether its draws carry dt/ds, which the exact bound (`Elbo`) needs.
        t_min: no level is drawn below it.
    """

    has_slopes: bool = False
    t_min: float = 0.0

    @abstractmethod
    def __call__(
        self,
        batch: int,
        grid: tuple[int, int],
        *,
        generator: Generators = None,
        device: torch.device | str = "cpu",
    ) -> LevelDraw:
        """Level maps for `batch` images on a grid of (gh, gw) patches."""


class Shared(LevelSampler):
    """One level for the whole image, as in usual diffusion: t ~ U(0, 1), or logit-normal where `scale` is given.

    Args:
        loc: mean of logit(t); larger means noisier. Used with `scale` only.
        scale: standard deviation of logit(t) (Esser et al., arXiv:2403.03206); None draws t uniformly.
    """

    def __init__(self, loc: float = 0.0, scale: float | None = None):
        if scale is None and loc != 0:
            raise ValueError(f"loc shifts the logit-normal only, got loc {loc} without a scale: give scale, say 1.0")
        if scale is not None and scale <= 0:
            raise ValueError(f"scale must be positive, got {scale}: leave it out for uniform levels")
        self.loc = loc
        self.scale = scale

    def __call__(
        self,
        batch: int,
        grid: tuple[int, int],
        *,
        generator: Generators = None,
        device: torch.device | str = "cpu",
    ) -> LevelDraw:
        """Maps of shape (batch, 1, 1)."""
        if self.scale is None:
            t = stratified(batch, generator=generator, device=device)
        else:
            t = (self.loc + self.scale * normal((batch,), generator=generator, device=device)).sigmoid()
        return LevelDraw(t[:, None, None], None, Distinct(t, torch.arange(batch, device=t.device)[:, None, None]))


class Independent(LevelSampler):
    """t_i ~ U(0, 1) for every patch (Diffusion Forcing, arXiv:2407.01392; "Patchwise" in arXiv:2606.07079).

    The mean level of an image then has a standard deviation of 1 / sqrt(12 patches): nearly clean and nearly noisy
    images, through which every generation passes, are never seen.
    """

    def __call__(
        self,
        batch: int,
        grid: tuple[int, int],
        *,
        generator: Generators = None,
        device: torch.device | str = "cpu",
    ) -> LevelDraw:
        """Maps of independent uniform levels."""
        return LevelDraw(uniform((batch, *grid), generator=generator, device=device))


class AlongPath(LevelSampler):
    """A point at uniform progress s on a random curve of a path family, with s stratified over the batch.

    Args:
        path: the family; `AsyncPatch()` is the sampler of AsyncPatch Diffusion (arXiv:2606.07079).
    """

    has_slopes = True

    def __init__(self, path: Path | None = None):
        self.path = path or AsyncPatch()
        self.t_min = self.path.t_min

    def __call__(
        self,
        batch: int,
        grid: tuple[int, int],
        *,
        generator: Generators = None,
        device: torch.device | str = "cpu",
    ) -> LevelDraw:
        """Maps on the curves, with their slopes."""
        curve = self.path.draw(batch, grid, generator=generator, device=device)
        return LevelDraw(*curve(stratified(batch, generator=generator, device=device)))


def stratified(batch: int, *, generator: Generators = None, device: torch.device | str = "cpu") -> Progress:
    """`batch` numbers, each U(0, 1), spread evenly: equal steps from one random offset (VDM, arXiv:2107.00630).

    With one generator per image there is no batch to stratify over: the numbers are independent.
    """
    if generator is not None and not isinstance(generator, torch.Generator):
        return uniform((batch,), generator=generator, device=device)
    offset = uniform((1,), generator=generator, device=device)
    # The order is random, so that an image's place in the batch (its class, its neighbours) says nothing of its level.
    order = uniform((batch,), generator=generator, device=device).argsort()
    return (offset + order.to(offset.dtype) / batch).remainder(1)
