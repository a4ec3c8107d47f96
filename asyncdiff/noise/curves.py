"""Curves of level maps, which noise paths draw: from the progress s of every image to its level map and slopes."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

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
        self._last: tuple[Progress, tuple[LevelMap, LevelMap]] | None = None

    def __call__(self, s: Progress) -> tuple[LevelMap, LevelMap]:
        """Return t(s) and dt/ds; the same tensor `s` is not evaluated twice in a row."""
        if self._last is None or self._last[0] is not s:
            self._last = s, self._curve(s)
        return self._last[1]


def derived(inner: Curve, curve: Curve, levels: Callable[[Tensor], Tensor]) -> Curve:
    """Return a curve made from another one, whose levels are a function of the other's; it broadcasts if that does."""
    if not isinstance(inner, BroadcastCurve):
        return curve
    return BroadcastCurve(curve, lambda s: levels(inner.levels(s)), inner.grid)
