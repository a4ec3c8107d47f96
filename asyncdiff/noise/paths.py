"""Noise paths: monotone curves of level maps from the clean image (s = 0) to pure noise (s = 1).

A `Path` is a family of curves; `draw` picks one random curve per image. A curve maps the progress s to the level map
t(s) and its slope dt/ds. Training evaluates the loss at a random point of a random curve, the likelihood bound
integrates along a curve, and sampling follows one backwards from s = 1 to s = 0.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from asyncdiff.checks import below_one
from asyncdiff.devices import constant, to_device
from asyncdiff.noise.curves import (
    BroadcastCurve,
    Curve,
    check_continuous,
    check_monotone,
    check_slopes,
    derived,
    first_patch,
)
from asyncdiff.noise.fields import Field, IndependentField
from asyncdiff.noise.orders import Order
from asyncdiff.randomness import Generators, RandomSource, seeded
from asyncdiff.shapes import KnownPatches, LevelMap, Progress, upsampled_to

LOWEST_FLOOR = 1e-12  # smallest floor for which SNRs and their derivatives, 2 / t^3, do not overflow in float32


class Path(ABC):
    """Family of noise paths: monotone curves of level maps t(s), s = 0 clean image, s = 1 pure noise.

    The level of every patch is non-decreasing in s and goes from `t_min` to 1; known patches may stay at 0. Subclasses
    define `curve`; `check_path` tests that the curves are noise paths and that the slopes are their derivatives.

    Attributes:
        t_min: level of every patch at s = 0, the floor of the path.

    Examples:
        >>> from asyncdiff.randomness import seeded
        >>> curve = AsyncPatch().draw(2, (4, 4), generator=seeded(0))  # 2 images of 4 x 4 patches
        >>> t, slope = curve(torch.tensor([0.1, 0.8]))
        >>> t.shape, slope.shape
        (torch.Size([2, 4, 4]), torch.Size([2, 4, 4]))
    """

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
        """Draw one random curve per image.

        Args:
            batch: number of images.
            grid: (gh, gw) of the level maps.
            generator: one generator for the batch, or one per image; None for torch's global one.
            device: device of the level maps.
            dtype: floating-point type of the level maps.

        Returns:
            A function from s (batch,) in [0, 1] to the level maps t(s) and their slopes dt/ds, both (batch, gh, gw).
        """
        return self.curve(RandomSource(batch, grid, generator, device, dtype))

    @abstractmethod
    def curve(self, source: RandomSource) -> Curve:
        """Return one curve per image; all randomness must come from `source`."""


class Synchronous(Path):
    """Path of standard diffusion: t_i(s) = s for all patches."""

    def curve(self, source: RandomSource) -> Curve:
        def levels(s: Tensor) -> Tensor:
            return s[..., None, None].expand(*s.shape, *source.grid)

        def curve(s: Progress) -> tuple[LevelMap, LevelMap]:
            t = levels(s)
            return t, torch.ones_like(t)

        return BroadcastCurve(curve, levels, source.grid)


class AsyncPatch(Path):
    """Path of AsyncPatch Diffusion: t_i(s) = s + spread u_i min(s, 1 - s), with a random field u fixed along the path.

    Geometrically, it goes straight from clean to a random waypoint in the hypercube of levels, then straight to noise.
    It is the controlled level sampler of AsyncPatch Diffusion (arXiv:2606.07079) written as a path family: with
    independent u_i ~ U(-1, 1) and spread 1, t(s) at uniform s has exactly its distribution, in which the mean level of
    an image stays close to s. Spread 0 is `Synchronous`.

    Args:
        spread: half-width of the levels within an image relative to min(s, 1 - s), in [0, 1]; 1 in the paper.
        field: random field u, which sets the dependence between patches; default: independent, as in the paper.

    Examples:
        >>> from asyncdiff.randomness import seeded
        >>> path = AsyncPatch(spread=0.5)
        >>> t, _ = path.draw(1, (2, 2), generator=seeded(0))(torch.tensor([0.5]))
        >>> bool(((t >= 0.25) & (t <= 0.75)).all())
        True
    """

    def __init__(self, spread: float = 1.0, field: Field | None = None):
        if not 0 <= spread <= 1:
            raise ValueError(
                f"spread must lie in [0, 1], or levels would leave [0, 1], got {spread}: use 1 as in the paper"
            )
        self.spread = spread
        self.field = field or IndependentField()

    def curve(self, source: RandomSource) -> Curve:
        u = self.spread * self.field.sample(source)

        def levels(s: Tensor) -> Tensor:
            s = s[..., None, None]
            # Rounding can push s + u m(s) outside [0, 1] by one ulp, but levels must lie in it.
            return (s + u * torch.minimum(s, 1 - s)).clamp(0, 1)

        def curve(s: Progress) -> tuple[LevelMap, LevelMap]:
            return levels(s), torch.where(s[:, None, None] < 0.5, 1 + u, 1 - u)

        return BroadcastCurve(curve, levels, source.grid)


class Ordered(Path):
    """Autoregressive path: groups of patches are generated one after the other, optionally overlapping in time.

    With K groups the levels of group k are t_k(s) = s (1 + (K - 1)(1 - overlap)) - (1 - overlap)(K - 1 - k), clamped to
    [0, 1]: the group that is generated first (k = 0) is noised last. Overlap 0 is strict autoregression, with 1/K of
    the path for each group; overlap towards 1 approaches `Synchronous`.

    Args:
        order: order of the patches, such as `orders.Raster`.
        overlap: share of a group's time during which the next group moves, too; in [0, 1).

    Examples:
        >>> from asyncdiff.noise.orders import Raster
        >>> curve = Ordered(Raster()).draw(1, (1, 4))  # 4 patches, generated from left to right
        >>> curve(torch.tensor([0.625]))[0]  # the first one is clean, the second one half denoised
        tensor([[[0.0000, 0.5000, 1.0000, 1.0000]]])
    """

    def __init__(self, order: Order, overlap: float = 0.0):
        below_one("overlap", overlap, "use 0 for strict autoregression, Synchronous for 1")
        self.order = order
        self.overlap = overlap

    def curve(self, source: RandomSource) -> Curve:
        groups, lag = self.order.groups(source.grid), 1 - self.overlap
        speed = 1 + (groups - 1) * lag
        delay = lag * (groups - 1 - self.order.ranks(source)).to(source.dtype)
        # A rounded s must not leave a patch just short of its last level for the rest of the trajectory, so every group
        # pauses at its first and last level for as long as the rounding error. Skipping levels instead would make
        # likelihood bounds too low.
        pause = 4 * speed * torch.finfo(source.dtype).eps

        def unclamped(s: Tensor) -> Tensor:
            return ((s * speed)[..., None, None] - delay - pause) / (1 - 2 * pause)

        def curve(s: Progress) -> tuple[LevelMap, LevelMap]:
            t = unclamped(s)
            moving = (t > 0) & (t < 1)
            return t.clamp(0, 1), speed / (1 - 2 * pause) * moving.to(t.dtype)

        return BroadcastCurve(curve, lambda s: unclamped(s).clamp(0, 1), source.grid)


class Waypoints(Path):
    """Piecewise linear path from clean through given level maps to pure noise.

    Args:
        maps: one or more maps of levels in [0, 1], each a list of rows; no level may be lower than in the previous map.
            If a map is coarser than the level map, each of its levels applies to a block of patches.
        progress: s of each map, increasing in (0, 1); default: evenly spaced.

    Examples:
        >>> curve = Waypoints([[[0.5, 1.0]]]).draw(1, (1, 2))  # the left patch is generated second
        >>> curve(torch.tensor([0.5]))[0], curve(torch.tensor([0.25]))[0]
        (tensor([[[0.5000, 1.0000]]]), tensor([[[0.2500, 0.5000]]]))
    """

    def __init__(self, maps: Sequence[Sequence[Sequence[float]]], progress: Sequence[float] | None = None):
        count = len(maps)
        sizes = [(len(rows), {len(row) for row in rows}) for rows in maps]
        if not maps or any(size != sizes[0] or len(size[1]) != 1 or 0 in size[1] for size in sizes):
            raise ValueError(
                f"maps must be one or more grids of the same size, got sizes (rows, row lengths) {sizes}: "
                "give all maps the same number of rows and columns"
            )
        at = [(k + 1) / (count + 1) for k in range(count)] if progress is None else [float(s) for s in progress]
        if len(at) != count or not all(a < b for a, b in zip([0, *at], [*at, 1], strict=True)):
            raise ValueError(
                f"progress needs one s per map, increasing in (0, 1), got {at} for {count} maps: "
                "omit it for equal spacing"
            )
        self.maps = [[[float(level) for level in row] for row in rows] for rows in maps]
        self.progress = None if progress is None else at
        inner = torch.tensor(self.maps, dtype=torch.float64)
        self._maps = torch.stack([torch.zeros_like(inner[0]), *inner, torch.ones_like(inner[0])])
        self._at = torch.tensor([0.0, *at, 1.0], dtype=torch.float64)
        check_monotone(self._maps, self._at, "maps")

    def curve(self, source: RandomSource) -> Curve:
        maps = _waypoint_maps(self, tuple(source.grid), source.dtype, source.device)
        at = _waypoint_progress(self, source.dtype, source.device)

        def segment(s: Tensor) -> tuple[Tensor, ...]:
            """Return the maps at the ends of the segments of s, the share of s in them, and their length."""
            k = (torch.searchsorted(at, s.contiguous(), right=True) - 1).clamp(0, len(at) - 2)
            first, last = at[k], at[k + 1]
            return (
                maps[k],
                maps[k + 1],
                ((s - first) / (last - first))[..., None, None],
                (last - first)[..., None, None],
            )

        def curve(s: Progress) -> tuple[LevelMap, LevelMap]:
            start, end, part, length = segment(s)
            return torch.lerp(start, end, part), (end - start) / length

        return BroadcastCurve(curve, lambda s: torch.lerp(*segment(s)[:3]), source.grid)


@constant
def _waypoint_maps(path: Waypoints, grid: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    return upsampled_to(path._maps, grid, "maps").to(device, dtype)


@constant
def _waypoint_progress(path: Waypoints, dtype: torch.dtype, device: torch.device) -> Tensor:
    return path._at.to(device, dtype)


class Conditioned(Path):
    """Path for inpainting and outpainting: known patches stay at t = 0 with slope 0, unknown ones follow `path`.

    At s = 1 only the unknown patches are pure noise.

    Args:
        path: path of the unknown patches.
        known: mask of known patches, True = known; (batch, gh, gw), or (1, gh, gw) for the same mask in all images.

    Examples:
        >>> path = Conditioned(Synchronous(), torch.tensor([[[True, False]]]))
        >>> path.draw(1, (1, 2))(torch.tensor([0.75]))
        (tensor([[[0.0000, 0.7500]]]), tensor([[[0., 1.]]]))
    """

    def __init__(self, path: Path, known: KnownPatches):
        self.path = path
        self.known = known
        self.t_min = path.t_min

    def curve(self, source: RandomSource) -> Curve:
        if tuple(self.known.shape[1:]) != tuple(source.grid):
            raise ValueError(
                f"known must have the level map's grid {tuple(source.grid)}, got {tuple(self.known.shape[1:])}: "
                "use asyncdiff.shapes.known_patches to convert a mask of pixels"
            )
        if len(self.known) not in (1, source.batch):
            raise ValueError(
                f"known needs a single mask or one per image, got {len(self.known)} masks for {source.batch} images: "
                "select the masks of the batch"
            )
        inner = self.path.curve(source)
        known = to_device(self.known, source.device)

        def curve(s: Progress) -> tuple[LevelMap, LevelMap]:
            t, slope = inner(s)
            return t.masked_fill(known, 0), slope.masked_fill(known, 0)

        return derived(inner, curve, lambda t: t.masked_fill(known, 0))


class PartiallyNoised(Path):
    """Path for image editing: t_i(s) = levels_i path_i(s), which ends at `levels` instead of pure noise.

    Sampling starts from an image noised to `levels`: SDEdit (arXiv:2108.01073) with one strength per patch. Each
    patch becomes clean when it does on `path`; the lower its start level, the smaller its steps.

    Args:
        path: path of the patches that start from pure noise; must not have a floor.
        levels: level of every patch at s = 1, 0 = unchanged .. 1 = pure noise; (batch or 1, gh, gw).
    """

    def __init__(self, path: Path, levels: LevelMap):
        if path.t_min > 0:
            raise ValueError(f"path must start at t = 0, got one with a floor of {path.t_min}: remove Floored")
        self.path = path
        self.levels = levels

    def curve(self, source: RandomSource) -> Curve:
        if tuple(self.levels.shape[1:]) != tuple(source.grid) or len(self.levels) not in (1, source.batch):
            raise ValueError(
                f"levels needs a single map or one per image, on the grid {tuple(source.grid)}, "
                f"got shape {tuple(self.levels.shape)} for {source.batch} images: use one value per patch"
            )
        inner = self.path.curve(source)
        levels = to_device(self.levels.to(source.dtype), source.device)

        def curve(s: Progress) -> tuple[LevelMap, LevelMap]:
            t, slope = inner(s)
            return levels * t, levels * slope

        return derived(inner, curve, lambda t: levels * t)


class Floored(Path):
    """Path with a floor: `path` compressed to levels in [t_min, 1] by t -> t_min + (1 - t_min) t, slopes included.

    Needed by the ELBO weighting and the likelihood bound: for an imperfect network their integral diverges at t = 0.

    Args:
        path: path without a floor.
        t_min: lowest level, in [1e-12, 1).

    Examples:
        >>> path = Floored(Synchronous(), t_min=0.1)
        >>> path.draw(1, (1, 1))(torch.tensor([0.0]))
        (tensor([[[0.1000]]]), tensor([[[0.9000]]]))
    """

    def __init__(self, path: Path, t_min: float = 1e-3):
        if not 0 < t_min < 1:
            raise ValueError(f"t_min must lie in (0, 1), got {t_min}: remove Floored for a path that starts at t = 0")
        if t_min < LOWEST_FLOOR:
            raise ValueError(
                f"t_min must be at least {LOWEST_FLOOR}, got {t_min}: 1 / t^3 overflows in float32 below it; "
                "use 1e-3, for example"
            )
        if isinstance(path, Conditioned):
            raise ValueError(
                "path must not be Conditioned, whose known patches stay at 0: use Conditioned(Floored(path), known)"
            )
        if path.t_min > 0:
            raise ValueError(f"path must start at t = 0, got one with a floor of {path.t_min}: apply Floored only once")
        self.path = path
        self.t_min = t_min

    def curve(self, source: RandomSource) -> Curve:
        inner = self.path.curve(source)

        def curve(s: Progress) -> tuple[LevelMap, LevelMap]:
            t, slope = inner(s)
            return self.t_min + (1 - self.t_min) * t, (1 - self.t_min) * slope

        return derived(inner, curve, lambda t: self.t_min + (1 - self.t_min) * t)


def check_path(path: Path, grid: tuple[int, int], *, curves: int = 4, points: int = 65) -> None:
    """Raise ValueError, naming the patch, unless `path` is a noise path on level maps of `grid`.

    Checks a few random curves (seed 0): levels lie in [0, 1], never fall, go from `t_min` to 1 or stay at 0, have no
    jumps, and slopes are their derivatives. It takes milliseconds; use it to test your own path classes.

    Args:
        path: path family to check.
        grid: (gh, gw) of the level maps.
        curves: number of random curves.
        points: number of values of s at which levels are compared.

    Examples:
        >>> check_path(AsyncPatch(), (4, 4))
    """
    curve = path.draw(curves, grid, generator=seeded(0), dtype=torch.float64)
    name, s = type(path).__name__, torch.linspace(0, 1, points, device="cpu", dtype=torch.float64)
    maps = torch.stack([curve(at.expand(curves))[0] for at in s])
    for number, curve_maps in enumerate(maps.unbind(1)):
        check_monotone(curve_maps, s, f"{name}: curve {number}")
        moves = (curve_maps != 0).any(0)
        for at, level in ((0, path.t_min), (-1, 1.0)):
            wrong = moves & ((curve_maps[at] - level).abs() > 1e-9)
            if wrong.any():
                row, column, t = first_patch(wrong, curve_maps[at])
                raise ValueError(
                    f"{name} must go from t = {path.t_min} to 1, got t = {t:g} at s = {abs(at)} in {row}, {column}: "
                    "set t_min to the lowest level, or correct the levels at s = 0 and 1"
                )
    check_continuous(curve, name, maps, s)
    check_slopes(curve, name, curves)
