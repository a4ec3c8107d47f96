"""Compute statistics of a level sampler: maps drawn from it, summary numbers, and curves of its path."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from asyncdiff.checks import at_least
from asyncdiff.evaluation.figures.level_densities import Density, exact_density
from asyncdiff.memory import available_memory, check_memory
from asyncdiff.noise.level_samplers import AlongPath, LevelSampler
from asyncdiff.noise.paths import Path
from asyncdiff.randomness import seeded
from asyncdiff.shapes import KnownPatches, LevelMap, Progress

BYTES_PER_PATCH = 24  # of a level map: the map, those that it is drawn from, and those of its statistics
BYTES_PER_PATCH_OF_CURVES = 2**11  # of the animation of a path: six curves at 60 times, as levels and as pixels
CurveMaps = Float[Tensor, "frames curves gh gw"]


@dataclass(frozen=True)
class LevelStatistics:
    """Level maps drawn from one sampler, and their statistics.

    Attributes:
        name: name of the experiment.
        note: one-line description of the sampler.
        t: level maps, one per image.
        known: whether each patch is known (clean and without loss).
        density: exact density of a patch's level, None if it is unknown.
        path: path that the sampler follows, None if it follows none.
        seed: random seed of the maps and the curves.
    """

    name: str
    note: str
    t: LevelMap
    known: KnownPatches
    density: Density | None
    path: Path | None
    seed: int

    @property
    def grid(self) -> tuple[int, int]:
        """Size (gh, gw) of the level maps."""
        return self.t.shape[1], self.t.shape[2]

    @property
    def means(self) -> Progress:
        """Mean level of each image."""
        return self.t.mean((1, 2))

    @property
    def spreads(self) -> Progress:
        """Standard deviation of the levels within each image."""
        return self.t.var((1, 2), correction=0).sqrt()

    def below(self, level: float) -> float:
        """Return the share of patches below a level."""
        return float((self.t < level).float().mean())

    def above(self, level: float) -> float:
        """Return the share of patches above a level."""
        return float((self.t > level).float().mean())

    def examples(self, count: int) -> Tensor:
        """Return the indices of `count` images evenly spaced in the order of their mean level, cleanest first."""
        order = self.means.argsort()
        ranks = (torch.arange(count) + 0.5) / count * len(order)
        return order[ranks.long()]

    def curves(self, frames: int, curves: int) -> CurveMaps:
        """Return maps along random curves of the path from s = 1 to s = 0; raise ValueError if there is no path."""
        if self.path is None:
            raise ValueError(f"curves need a sampler with a path, but {self.name} has none: use AlongPath, for example")
        curve = self.path.draw(curves, self.grid, generator=seeded(self.seed))
        return torch.stack([curve(s.expand(curves))[0] for s in torch.linspace(1, 0, frames)])


def compute_level_statistics(
    name: str, sampler: LevelSampler, grid: tuple[int, int], *, note: str = "", images: int = 4096, seed: int = 0
) -> LevelStatistics:
    """Draw `images` level maps of size `grid` from a sampler, and return their statistics."""
    at_least("images", images, 1, "use 4096 to show the distribution, for example")
    path = sampler.path if isinstance(sampler, AlongPath) else None
    _check_memory(images, grid, animated=path is not None)
    sampler.check(grid)
    draw = sampler(images, grid, generator=seeded(seed))
    t = draw.t.expand(-1, *grid)
    known = torch.zeros(t.shape, dtype=torch.bool) if draw.known is None else draw.known
    return LevelStatistics(name, note, t, known, exact_density(sampler), path, seed)


def _check_memory(images: int, grid: tuple[int, int], *, animated: bool) -> None:
    """Raise ValueError if so many level maps, and the curves of a path, do not fit into memory."""
    available, patches = available_memory(), grid[0] * grid[1]
    curves = BYTES_PER_PATCH_OF_CURVES * patches if animated else 0
    each = BYTES_PER_PATCH * patches
    if fitting := max(0, available - curves) // each:
        remedy = f"{fitting} maps of {grid[0]}x{grid[1]} patches fit"
        check_memory("images", f"{images} level maps", images * each + curves, remedy, available=available)
    else:
        check_memory("grid", f"{grid[0]}x{grid[1]}", each + curves, "16x16 is the default", available=available)
