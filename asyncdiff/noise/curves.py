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
