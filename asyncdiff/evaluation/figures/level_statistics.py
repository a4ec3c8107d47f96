"""What is measured of a level sampler: many of its maps, what they have in common, and curves of its path."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from asyncdiff.checks import at_least
from asyncdiff.evaluation.figures.level_densities import Density, exact_density
from asyncdiff.noise.levels import AlongPath, LevelSampler
from asyncdiff.noise.paths import Path
from asyncdiff.randomness import seeded
from asyncdiff.shapes import KnownPatches, LevelMap, Progress

CurveMaps = Float[Tensor, "frames curves gh gw"]


@dataclass(frozen=True)
class Survey:
    """Maps of one sampler.

    Attributes:
        name: of the experiment.
        note: what the sampler is, in a line.
        t: its maps.
        known: patches that are given clean, all False where the sampler gives none.
        density: exact density of a patch's level, where it is known.
        path: the path that the maps lie on; None where they lie on none of their own.
        seed: of the maps and the curves.
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
        """(gh, gw) of the maps."""
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
        """Share of the patches below a level."""
        return float((self.t < level).float().mean())

    def above(self, level: float) -> float:
        """Share of the patches above a level."""
        return float((self.t > level).float().mean())

    def examples(self, count: int) -> Tensor:
        """Indices of images at equal steps of the rank by mean, cleanest first."""
        order = self.means.argsort()
        places = (torch.arange(count) + 0.5) / count * len(order)
        return order[places.long()]

    def curves(self, frames: int, curves: int) -> CurveMaps:
        """Random curves of the path from s = 1 to s = 0; ValueError where there is none."""
        if self.path is None:
            raise ValueError(f"path must be given to follow it, got none: {self.name} lies on no path of its own")
        curve = self.path.draw(curves, self.grid, generator=seeded(self.seed))
        return torch.stack([curve(s.expand(curves))[0] for s in torch.linspace(1, 0, frames)])


def survey(
    name: str, sampler: LevelSampler, grid: tuple[int, int], *, note: str = "", images: int = 4096, seed: int = 0
) -> Survey:
    """`images` maps of a sampler on a level map of `grid`."""
    at_least("images", images, 1, "4096 shows the distribution")
    sampler.check(grid)
    draw = sampler(images, grid, generator=seeded(seed))
    t = draw.t.expand(-1, *grid)
    known = torch.zeros(t.shape, dtype=torch.bool) if draw.known is None else draw.known
    path = sampler.path if isinstance(sampler, AlongPath) else None
    return Survey(name, note, t, known, exact_density(sampler), path, seed)
