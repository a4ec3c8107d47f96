"""Noise paths: monotone curves of level maps from the clean image (s = 0) to pure noise (s = 1).

A `Path` is a family; `draw` picks one random curve per image, and a curve gives the map t(s) with its slope dt/ds.
Training draws a point on a random curve, the likelihood integrates along one, generation walks one back.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch

from asyncdiff.noise.fields import Field, IndependentField
from asyncdiff.noise.orders import Order
from asyncdiff.randomness import Generators, RandomSource, seeded
from asyncdiff.shapes import KnownPatches, LevelMap, Progress, upsampled_to

Curve = Callable[[Progress], tuple[LevelMap, LevelMap]]  # s -> (t, dt/ds)

LOWEST = 1e-12  # of floors: signal-to-noise ratios and their derivatives, 2 / t^3, are numbers of float32 down to it


class Path(ABC):
    """A family of noise paths. Every level is non-decreasing in s, from `t_min` to 1 unless it stays at 0, clean."""

    t_min: float = 0.0

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
        return self.curve(RandomSource(batch, grid, generator, device, dtype))

    @abstractmethod
    def curve(self, source: RandomSource) -> Curve:
        """One curve per image; all its randomness comes from `source`."""


class Synchronous(Path):
    """All patches share one clock: t = s. Usual diffusion."""

    def curve(self, source: RandomSource) -> Curve:
        """The straight diagonal of the hypercube, the same for every image; nothing random."""

        def curve(s: Progress) -> tuple[LevelMap, LevelMap]:
            t = s[:, None, None].expand(len(s), *source.grid)
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

    def curve(self, source: RandomSource) -> Curve:
        """One field u per image, fixed along the path."""
        u = self.spread * self.field.sample(source)

        def curve(s: Progress) -> tuple[LevelMap, LevelMap]:
            s = s[:, None, None]
            # Rounding may carry s + u m(s) past the ends by one ulp; the levels are a promise to keep.
            t = (s + u * torch.minimum(s, 1 - s)).clamp(0, 1)
            return t, torch.where(s < 0.5, 1 + u, 1 - u)

        return curve


class Ordered(Path):
    """Group after group: each has a clock of its own, and one runs while the last `overlap` of its neighbour's does.

    With K groups the clocks are c_k = s (1 + (K - 1)(1 - overlap)) - (1 - overlap)(K - 1 - k), cut to [0, 1]: the group
    that is generated first is noised last. Overlap 0 is strict autoregression, 1/K of the path for each group; overlap
    towards 1 approaches `Synchronous`.

    Args:
        order: which patches move when.
        overlap: share of a group's time in which the next one moves, too; in [0, 1).
    """

    def __init__(self, order: Order, overlap: float = 0.0):
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap must lie in [0, 1), got {overlap}: overlap 1 is Synchronous, 0 strict order")
        self.order = order
        self.overlap = overlap

    def curve(self, source: RandomSource) -> Curve:
        """The curves of the order's ranks."""
        groups, lag = self.order.groups(source.grid), 1 - self.overlap
        speed = 1 + (groups - 1) * lag
        delay = lag * (groups - 1 - self.order.ranks(source)).to(source.dtype)
        # A rounded s must not leave a patch a hair short of its end, unfinished for the rest of the walk: every clock
        # rests at both ends for as long as rounding can be off. It skips no level for that, or bounds would be too low.
        rest = 4 * speed * torch.finfo(source.dtype).eps

        def curve(s: Progress) -> tuple[LevelMap, LevelMap]:
            clock = ((s * speed)[:, None, None] - delay - rest) / (1 - 2 * rest)
            moving = (clock > 0) & (clock < 1)
            return clock.clamp(0, 1), speed / (1 - 2 * rest) * moving.to(clock.dtype)

        return curve


class Waypoints(Path):
    """Straight from clean through a user's level maps to pure noise.

    Args:
        maps: one or more maps of levels in [0, 1], each as rows; none may fall below the one before it. Maps that are
            coarser than the level map are repeated over it.
        progress: s of each map, increasing in (0, 1); evenly spaced by default.
    """

    def __init__(self, maps: Sequence[Sequence[Sequence[float]]], progress: Sequence[float] | None = None):
        count = len(maps)
        sizes = [(len(rows), {len(row) for row in rows}) for rows in maps]
        if not maps or any(size != sizes[0] or len(size[1]) != 1 or 0 in size[1] for size in sizes):
            raise ValueError(f"maps must be one or more grids of one size, got {sizes}: (rows, lengths of the rows)")
        at = [(k + 1) / (count + 1) for k in range(count)] if progress is None else [float(s) for s in progress]
        if len(at) != count or not all(a < b for a, b in zip([0, *at], [*at, 1], strict=True)):
            raise ValueError(f"progress must increase in (0, 1), one s per map, got {at} for {count} maps")
        self.maps = [[[float(level) for level in row] for row in rows] for rows in maps]
        self.progress = None if progress is None else at
        inner = torch.tensor(self.maps, dtype=torch.float64)
        self._maps = torch.stack([torch.zeros_like(inner[0]), *inner, torch.ones_like(inner[0])])
        self._at = torch.tensor([0.0, *at, 1.0], dtype=torch.float64)
        _check_rise(self._maps, self._at, "maps")

    def curve(self, source: RandomSource) -> Curve:
        """The one piecewise straight curve, for every image."""
        maps = upsampled_to(self._maps, source.grid, "maps").to(source.device, source.dtype)
        at = self._at.to(source.device, source.dtype)

        def curve(s: Progress) -> tuple[LevelMap, LevelMap]:
            leg = (torch.searchsorted(at, s.contiguous(), right=True) - 1).clamp(0, len(at) - 2)
            start, end, first, last = maps[leg], maps[leg + 1], at[leg], at[leg + 1]
            part = ((s - first) / (last - first))[:, None, None]
            return torch.lerp(start, end, part), (end - start) / (last - first)[:, None, None]

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

    def curve(self, source: RandomSource) -> Curve:
        """The curves of the inner path, held at 0 on the known patches."""
        if tuple(self.known.shape[1:]) != tuple(source.grid):
            raise ValueError(
                f"known must have the level map's grid {tuple(source.grid)}, got {tuple(self.known.shape[1:])}: "
                "shapes.known_patches makes it from a mask of pixels"
            )
        if len(self.known) not in (1, source.batch):
            raise ValueError(
                f"known must hold one mask, or one per image, got {len(self.known)} for {source.batch} images: "
                "expand one mask to the batch, or choose those of the batch"
            )
        inner = self.path.curve(source)
        known = self.known.to(source.device)

        def curve(s: Progress) -> tuple[LevelMap, LevelMap]:
            t, slope = inner(s)
            return t.masked_fill(known, 0), slope.masked_fill(known, 0)

        return curve


class PartiallyNoised(Path):
    """A path that is entered on its way: every patch's levels are those of `path` times the level that it starts from.

    The end at s = 1 is the image noised to `levels`: the path of editing, SDEdit (arXiv:2108.01073) patch by patch. All
    patches reach the clean image together, or in the order of `path`, in strides that their levels shorten.

    Args:
        path: the path of patches that start as pure noise.
        levels: of every patch at s = 1, 0 = stays as it is .. 1 = pure noise; (batch or 1, gh, gw).
    """

    def __init__(self, path: Path, levels: LevelMap):
        if path.t_min > 0:
            raise ValueError(f"path must start at t = 0, got one with a floor of {path.t_min}: leave Floored out")
        self.path = path
        self.levels = levels

    def curve(self, source: RandomSource) -> Curve:
        """The curves of the inner path, scaled patch by patch."""
        if tuple(self.levels.shape[1:]) != tuple(source.grid) or len(self.levels) not in (1, source.batch):
            raise ValueError(
                f"levels must hold one map, or one per image, of the grid {tuple(source.grid)}, "
                f"got {tuple(self.levels.shape)} for {source.batch} images: give one value per patch"
            )
        inner = self.path.curve(source)
        levels = self.levels.to(source.device, source.dtype)

        def curve(s: Progress) -> tuple[LevelMap, LevelMap]:
            t, slope = inner(s)
            return levels * t, levels * slope

        return curve


class Floored(Path):
    """`path` compressed to levels [t_min, 1] by t -> t_min + (1 - t_min) t; its slopes shrink with it.

    The likelihood's integrand has no finite integral down to t = 0 for an imperfect network: bounds start at a floor.

    Args:
        path: the path to lift.
        t_min: the lowest level, in [`LOWEST`, 1).
    """

    def __init__(self, path: Path, t_min: float = 1e-3):
        if not 0 < t_min < 1:
            raise ValueError(f"t_min must lie in (0, 1), got {t_min}: leave Floored out for a path from t = 0")
        if t_min < LOWEST:
            raise ValueError(f"t_min must be at least {LOWEST}, got {t_min}: float32 has no 1 / t^3 below; try 1e-3")
        if isinstance(path, Conditioned):
            raise ValueError("path must not be Conditioned (known patches stay at 0): use Conditioned(Floored(...))")
        if path.t_min > 0:
            raise ValueError(f"path must start at t = 0, got one with a floor of {path.t_min}: lift it once")
        self.path = path
        self.t_min = t_min

    def curve(self, source: RandomSource) -> Curve:
        """The curves of the inner path, lifted to the floor."""
        inner = self.path.curve(source)

        def curve(s: Progress) -> tuple[LevelMap, LevelMap]:
            t, slope = inner(s)
            return self.t_min + (1 - self.t_min) * t, (1 - self.t_min) * slope

        return curve


def check_path(path: Path, grid: tuple[int, int], *, curves: int = 4, points: int = 65) -> None:
    """Raise ValueError, with the patch named, unless `path` is a noise path on a level map of `grid`.

    On a few of its curves, with seed 0: levels in [0, 1] that never fall, from t_min to 1 unless they stay at 0, and
    slopes that are their derivatives. Meant for classes of users; it costs milliseconds.
    """
    curve = path.draw(curves, grid, generator=seeded(0), dtype=torch.float64)
    name, s = type(path).__name__, torch.linspace(0, 1, points, device="cpu", dtype=torch.float64)
    maps = torch.stack([curve(at.expand(curves))[0] for at in s])
    for number, curve_maps in enumerate(maps.unbind(1)):
        _check_rise(curve_maps, s, f"{name}: curve {number}")
        moves = (curve_maps != 0).any(0)
        for at, level in ((0, path.t_min), (-1, 1.0)):
            wrong = moves & ((curve_maps[at] - level).abs() > 1e-9)
            if wrong.any():
                row, column, t = _first(wrong, curve_maps[at])
                raise ValueError(
                    f"{name} must go from t = {path.t_min} to 1, got t = {t:g} at s = {abs(at)} at {row}, {column}: "
                    "set t_min to its lowest level, or mend its end"
                )
    _check_jump(curve, name, maps, s)
    _check_slopes(curve, name, curves)


def _check_jump(curve: Curve, name: str, maps: torch.Tensor, s: torch.Tensor, halvings: int = 36) -> None:
    """Raise where the largest rise of a curve does not shrink with the interval it is looked for in."""
    rises = maps.diff(dim=0)  # (points - 1, curves, gh, gw)
    for number in range(rises.shape[1]):
        leg, row, column = (int(k) for k in (rises[:, number] == rises[:, number].max()).nonzero()[0])
        low, high = s[leg], s[leg + 1]

        def level(at: torch.Tensor, of: tuple[int, int, int] = (number, row, column)) -> torch.Tensor:
            return curve(at.expand(rises.shape[1]))[0][of]

        for _ in range(halvings):
            middle = (low + high) / 2
            lower = level(middle) - level(low) > level(high) - level(middle)
            low, high = (low, middle) if lower else (middle, high)
        jump = float(level(high) - level(low))
        if jump > 1e-3:
            raise ValueError(
                f"{name} must be continuous, got a jump by {jump:g} at s = {low:g} at row {row}, column {column}: "
                "give every patch some time for its way, as asyncdiff.noise.Ordered does"
            )


def _check_rise(maps: torch.Tensor, s: torch.Tensor, name: str) -> None:
    """Raise unless the maps (n, gh, gw) at s (n,) lie in [0, 1] and none falls."""
    for at, level_map in zip(s.tolist(), maps, strict=True):
        outside = ~((level_map >= 0) & (level_map <= 1))  # NaN is outside, too
        if outside.any():
            row, column, t = _first(outside, level_map)
            raise ValueError(f"{name} must hold levels in [0, 1], got {t:g} at s = {at:g} at {row}, {column}")
    falls = maps.diff(dim=0) < -1e-12
    if falls.any():
        leg = int(falls.flatten(1).any(1).nonzero()[0])
        row, column, before = _first(falls[leg], maps[leg])
        after = _first(falls[leg], maps[leg + 1])[2]
        raise ValueError(
            f"{name} must never fall, got t = {before:g} at s = {s[leg]:g} and {after:g} at s = {s[leg + 1]:g} "
            f"at {row}, {column}: raise the later level or lower the earlier"
        )


def _check_slopes(curve: Curve, name: str, curves: int, probes: int = 32, step: float = 1e-6) -> None:
    """Raise where slopes differ from finite differences at more than a few places: kinks are few."""
    places = torch.rand(probes, generator=seeded(1), device="cpu", dtype=torch.float64) * (1 - 2 * step) + step
    wrong = 0
    for s in places:
        above, below = (curve((s + d).expand(curves))[0] for d in (step, -step))
        slope = curve(s.expand(curves))[1]
        off = ((above - below) / (2 * step) - slope).abs() > 1e-3 * (1 + slope.abs())
        wrong += int(off.any())
        if wrong > probes // 8:
            row, column, given = _first(off[off.flatten(1).any(1)][0], slope[off.flatten(1).any(1)][0])
            raise ValueError(
                f"{name} must give slopes dt/ds that are the derivatives of its levels, got {given:g} at s = {s:g} "
                f"at {row}, {column}: without them the likelihood is wrong"
            )


def _first(where: torch.Tensor, values: torch.Tensor) -> tuple[str, str, float]:
    row, column = where.nonzero()[0].tolist()
    return f"row {row}", f"column {column}", float(values[row, column])
