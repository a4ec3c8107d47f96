"""Curves of level maps, which noise paths draw: from the progress s of every image to its level map and slopes.

`asyncdiff.noise.check_path` checks them.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from asyncdiff.randomness import seeded
from asyncdiff.shapes import LevelMap, Progress

Curve = Callable[[Progress], tuple[LevelMap, LevelMap]]  # s -> (t, dt/ds)

# s of any number of points of every image -> t; a curve that takes several points of an image at once
Levels = Callable[[Float[Tensor, "*points b"]], Float[Tensor, "*points b gh gw"]]


class BroadcastCurve:
    """Curve that also gives the levels of many points of every image in one go, which GPUs need far fewer kernels for.

    Args:
        curve: the curve, as a function of s (b,).
        levels: its levels as a function of s (..., b); the same numbers.
        grid: (gh, gw) of the level maps.
    """

    def __init__(self, curve: Curve, levels: Levels, grid: tuple[int, int]):
        self._curve = curve
        self.levels = levels
        self.grid = grid
        self._last: tuple[Progress, LevelMap, LevelMap] | None = None
        self._versions: list[int] = []

    def __call__(self, s: Progress) -> tuple[LevelMap, LevelMap]:
        """Return t(s) and dt/ds; the same tensor `s` is not evaluated twice in a row, unless it has changed."""
        last = self._last
        if last is None or last[0] is not s or s.is_inference() or [x._version for x in last] != self._versions:
            self._last = last = (s, *self._curve(s))
            # Inference tensors have no versions, which tell whether a tensor has been changed in place.
            self._versions = [] if any(x.is_inference() for x in last) else [x._version for x in last]
        return last[1], last[2]


def derived(inner: Curve, curve: Curve, levels: Callable[[Tensor], Tensor]) -> Curve:
    """Return a curve made from another one, whose levels are a function of the other's; it broadcasts if that does."""
    if not isinstance(inner, BroadcastCurve):
        return curve
    return BroadcastCurve(curve, lambda s: levels(inner.levels(s)), inner.grid)


def check_continuous(curve: Curve, name: str, maps: Tensor, s: Tensor, halvings: int = 36) -> None:
    """Raise ValueError if a curve jumps: if its largest rise does not shrink as the interval around it is halved."""
    rises = maps.diff(dim=0).transpose(0, 1)  # (curves, points - 1, gh, gw)
    patches, width = rises[0, 0].numel(), rises.shape[3]
    largest, numbers = rises.flatten(1).argmax(1), torch.arange(len(rises), device="cpu")
    patch, low, high = largest % patches, s[largest // patches], s[largest // patches + 1]

    def level(at: Tensor) -> Tensor:
        return curve(at)[0].flatten(1)[numbers, patch]

    for _ in range(halvings):
        middle = (low + high) / 2
        lower = level(middle) - level(low) > level(high) - level(middle)
        low, high = torch.where(lower, low, middle), torch.where(lower, middle, high)
    for jump, at, place in zip(level(high) - level(low), low, patch.tolist(), strict=True):
        if jump > 1e-3:
            raise ValueError(
                f"{name} must be continuous, got a jump of {jump:g} at s = {at:g} in row {place // width}, "
                f"column {place % width}: raise the level over an interval of s, as asyncdiff.noise.Ordered does"
            )


def check_monotone(maps: Tensor, s: Tensor, name: str) -> None:
    """Raise ValueError unless the maps (n, gh, gw) at s (n,) lie in [0, 1] and no level falls."""
    for at, level_map in zip(s.tolist(), maps, strict=True):
        outside = ~((level_map >= 0) & (level_map <= 1))  # NaN counts as outside
        if outside.any():
            row, column, t = first_patch(outside, level_map)
            raise ValueError(
                f"{name} must have levels in [0, 1], got {t:g} at s = {at:g} in {row}, {column}: clamp them"
            )
    falls = maps.diff(dim=0) < -1e-12
    if falls.any():
        k = int(falls.flatten(1).any(1).nonzero()[0])
        row, column, before = first_patch(falls[k], maps[k])
        after = first_patch(falls[k], maps[k + 1])[2]
        raise ValueError(
            f"{name} must have levels that never fall, got t = {before:g} at s = {s[k]:g} and {after:g} at "
            f"s = {s[k + 1]:g} in {row}, {column}: raise the later level or lower the earlier one"
        )


def check_slopes(curve: Curve, name: str, curves: int, probes: int = 32, step: float = 1e-6) -> None:
    """Raise ValueError if slopes differ from finite differences at more than 1/8 of the probes (kinks are rarer)."""
    points = torch.rand(probes, generator=seeded(1), device="cpu", dtype=torch.float64) * (1 - 2 * step) + step
    wrong = 0
    for s in points:
        above, below = (curve((s + d).expand(curves))[0] for d in (step, -step))
        slope = curve(s.expand(curves))[1]
        off = ((above - below) / (2 * step) - slope).abs() > 1e-3 * (1 + slope.abs())
        wrong += int(off.any())
        if wrong > probes // 8:
            row, column, returned = first_patch(off[off.flatten(1).any(1)][0], slope[off.flatten(1).any(1)][0])
            raise ValueError(
                f"{name} must return the derivatives of its levels as slopes, got a wrong {returned:g} at s = {s:g} "
                f"in {row}, {column}: correct the slopes, or likelihoods will be wrong"
            )


def first_patch(where: Tensor, values: Tensor) -> tuple[str, str, float]:
    """Return the first patch where `where` is True, as "row i" and "column j", and its value."""
    row, column = where.nonzero()[0].tolist()
    return f"row {row}", f"column {column}", float(values[row, column])
