"""Noise paths: monotone curves of level maps from the clean image (s = 0) to pure noise (s = 1).

A `Path` is a family; `draw` picks one random curve per image, and a curve gives the map t(s) with its slope dt/ds.
Training draws a point on a random curve, the likelihood integrates along one, generation walks one back.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch

from asyncdiff.fields import Field, IndependentField
from asyncdiff.randomness import Generators
from asyncdiff.shapes import KnownPatches, LevelMap, Progress

Curve = Callable[[Progress], tuple[LevelMap, LevelMap]]  # s -> (t, dt/ds)


class Path(ABC):
    """A family of noise paths. Every level is non-decreasing in s, from `t_min` to 1 wherever it moves at all."""

    t_min: float = 0.0

    @abstractmethod
    def draw(
        self,
        batch: int,
        grid: tuple[int, int],
        *,
        generator: Generators = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Curve:
        """One random curve per image on a grid of (gh, gw) patches; call it with s (batch,) in [0, 1]."""


class Synchronous(Path):
    """All patches share one clock: t = s. Usual diffusion."""

    def draw(
        self,
        batch: int,
        grid: tuple[int, int],
        *,
        generator: Generators = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Curve:
        """The straight diagonal of the hypercube, the same for every image; nothing random."""

        def curve(s: Progress) -> tuple[LevelMap, LevelMap]:
            t = s[:, None, None].expand(len(s), *grid)
            return t, torch.ones_like(t)

        return curve


class AsyncPatch(Path):
    """t_i(s) = s + spread u_i min(s, 1 - s): straight to a random waypoint of the hypercube, then straight to noise.

    The controlled level sampler of AsyncPatch Diffusion (arXiv:2606.07079) read as a path family: with U(-1, 1) fields
    and spread 1, t(s) at uniform s has exactly its distribution. Spread 0 is `Synchronous`.

    Args:
        spread: half-width of the levels within an image relative to min(s, 1 - s), in [0, 1].
        field: dependence between patches; independent by default, as in the paper.
    """

    def __init__(self, spread: float = 1.0, field: Field | None = None):
        if not 0 <= spread <= 1:
            raise ValueError(f"spread must lie in [0, 1], or levels would leave [0, 1], got {spread}: 1 is the paper's")
        self.spread = spread
        self.field = field or IndependentField()

    def draw(
        self,
        batch: int,
        grid: tuple[int, int],
        *,
        generator: Generators = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Curve:
        """One field u per image, fixed along the path."""
        u = self.spread * self.field(batch, grid, generator=generator, device=device, dtype=dtype)

        def curve(s: Progress) -> tuple[LevelMap, LevelMap]:
            s = s[:, None, None]
            # Rounding may carry s + u m(s) past the ends by one ulp; the levels are a promise to keep.
            t = (s + u * torch.minimum(s, 1 - s)).clamp(0, 1)
            return t, torch.where(s < 0.5, 1 + u, 1 - u)

        return curve


class Conditioned(Path):
    """A path around what is known: known patches stay at t = 0 with slope 0, the others follow `path`.

    The end at s = 1 is pure noise on the unknown patches only: the path of inpainting and outpainting.

    Args:
        path: the path of the unknown patches.
        known: True = known, per patch; (batch or 1, gh, gw).
    """

    def __init__(self, path: Path, known: KnownPatches):
        self.path = path
        self.known = known
        self.t_min = path.t_min

    def draw(
        self,
        batch: int,
        grid: tuple[int, int],
        *,
        generator: Generators = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Curve:
        """The curves of the inner path, held at 0 on the known patches."""
        if tuple(self.known.shape[1:]) != tuple(grid):
            raise ValueError(f"known must have the level map's grid {tuple(grid)}, got {tuple(self.known.shape[1:])}")
        inner = self.path.draw(batch, grid, generator=generator, device=device, dtype=dtype)
        known = self.known.to(device)

        def curve(s: Progress) -> tuple[LevelMap, LevelMap]:
            t, slope = inner(s)
            return t.masked_fill(known, 0), slope.masked_fill(known, 0)

        return curve


class Floored(Path):
    """`path` compressed to levels [t_min, 1] by t -> t_min + (1 - t_min) t; its slopes shrink with it.

    The likelihood's integrand has no finite integral down to t = 0 for an imperfect network: bounds start at a floor.

    Args:
        path: the path to lift.
        t_min: the lowest level, in (0, 1).
    """

    def __init__(self, path: Path, t_min: float = 1e-3):
        if not 0 < t_min < 1:
            raise ValueError(f"t_min must lie in (0, 1), got {t_min}: leave Floored out for a path from t = 0")
        if isinstance(path, Conditioned):
            raise ValueError("path must not be Conditioned (known patches stay at 0): use Conditioned(Floored(...))")
        self.path = path
        self.t_min = t_min

    def draw(
        self,
        batch: int,
        grid: tuple[int, int],
        *,
        generator: Generators = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Curve:
        """The curves of the inner path, lifted to the floor."""
        inner = self.path.draw(batch, grid, generator=generator, device=device, dtype=dtype)

        def curve(s: Progress) -> tuple[LevelMap, LevelMap]:
            t, slope = inner(s)
            return self.t_min + (1 - self.t_min) * t, (1 - self.t_min) * slope

        return curve
