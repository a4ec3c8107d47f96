"""Statistics of a level sampler: many of its maps, their summary numbers, and curves of its path."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from asyncdiff.checks import at_least
from asyncdiff.evaluation.figures.level_densities import Density, exact_density
from asyncdiff.noise.level_samplers import AlongPath, LevelSampler
from asyncdiff.noise.paths import Path
from asyncdiff.randomness import seeded
from asyncdiff.shapes import KnownPatches, LevelMap, Progress

CurveMaps = Float[Tensor, "frames curves gh gw"]


@dataclass(frozen=True)
class LevelStatistics:
    """Level maps drawn from one sampler, and their statistics.

    Attributes:
        name: name of the experiment.
        note: one-line description of the sampler.
        t: level maps.
        known: patches that are given clean, all False if the sampler has none.
        density: exact density of a patch's level, None if it is not known.
        path: path of the maps, None if the sampler has none.
        seed: seed of the maps and the curves.
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
        """Return indices of images evenly spaced in the order of their mean level, cleanest first."""
        order = self.means.argsort()
        ranks = (torch.arange(count) + 0.5) / count * len(order)
        return order[ranks.long()]

    def curves(self, frames: int, curves: int) -> CurveMaps:
        """Return maps along random curves of the path from s = 1 to s = 0; raise ValueError without a path."""
        if self.path is None:
            raise ValueError(
                f"sampler must have a path to draw curves, got none for {self.name}: use one that follows a path"
            )
        curve = self.path.draw(curves, self.grid, generator=seeded(self.seed))
        return torch.stack([curve(s.expand(curves))[0] for s in torch.linspace(1, 0, frames)])


def measure_levels(
    name: str, sampler: LevelSampler, grid: tuple[int, int], *, note: str = "", images: int = 4096, seed: int = 0
) -> LevelStatistics:
    """Draw `images` level maps of size `grid` from a sampler."""
    at_least("images", images, 1, "use 4096 to show the distribution, for example")
    sampler.check(grid)
    draw = sampler(images, grid, generator=seeded(seed))
    t = draw.t.expand(-1, *grid)
    known = torch.zeros(t.shape, dtype=torch.bool) if draw.known is None else draw.known
    path = sampler.path if isinstance(sampler, AlongPath) else None
    return LevelStatistics(name, note, t, known, exact_density(sampler), path, seed)
