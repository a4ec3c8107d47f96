"""Computing only the patches that move: what others last were to the attention is remembered in between."""

import torch
import torch.nn.functional as F
from jaxtyping import Int64
from torch import Tensor

from asyncdiff.denoising.denoiser import Denoiser, DenoiserLike, Prediction
from asyncdiff.noise.processes import Process
from asyncdiff.shapes import Image, KnownPatches, Labels, LevelMap, UniqueLevels


class PartialUpdates:
    """A denoiser for one walk that evaluates the moving patches only, and all of them now and then.

    Patches that stand still, known, finished or waiting, are computed once at their level and then stay in the keys and
    values that the moving ones attend to. What moving patches would have changed in them is missed until the next
    refresh: an approximation, unless `refresh` is 1.

    The first step computes all patches, later refreshes come half an interval after its multiples. In strict order,
    with as many steps a patch as an interval has, they so fall into the middle of every patch's time: refreshed at its
    start, the others would only ever have seen it as noise.

    Args:
        denoiser: its network must be able to remember, as `asyncdiff.networks.DiT`.
        refresh: steps between evaluations of all patches.
        margin: patches around moving ones, in every direction, that are computed with them.

    Attributes:
        moving: patches whose prediction is wanted next; setting it counts a step.
    """

    def __init__(self, denoiser: DenoiserLike, refresh: int, margin: int = 0):
        if not isinstance(denoiser, Denoiser) or not hasattr(denoiser.network, "kv_cache"):
            kind = type(getattr(denoiser, "network", denoiser)).__name__
            raise ValueError(f"refresh must be 1 for {kind}, which computes all patches at a time, got {refresh}")
        self.denoiser = denoiser
        self.refresh = refresh
        self.margin = margin
        self._kv_cache = denoiser.network.kv_cache()  # type: ignore[operator]
        self._moving: KnownPatches | None = None
        self._t: LevelMap | None = None
        self._steps = -1
        self._due = True

    @property
    def moving(self) -> KnownPatches | None:
        """Patches whose prediction is wanted."""
        return self._moving

    @moving.setter
    def moving(self, patches: KnownPatches) -> None:
        self._moving = patches
        self._steps += 1
        self._due = self._due or (self._steps + self.refresh // 2) % self.refresh == 0

    @property
    def steady(self) -> bool:
        """True: guidance must ask for the same branches at every step, or what is remembered would be of others."""
        return True

    @property
    def process(self) -> Process:
        """The denoiser's."""
        return self.denoiser.process

    @property
    def null_label(self) -> int | None:
        """The denoiser's."""
        return self.denoiser.null_label

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """The denoiser's."""
        return self.denoiser.grid(size)

    def __call__(
        self, x_t: Image, t: LevelMap, label: Labels | None = None, *, unique: UniqueLevels | None = None
    ) -> Prediction:
        """The prediction, fresh for moving patches, as last computed for the others."""
        assert self._moving is not None, "a walk says what moves before it evaluates"
        branches = len(x_t) // len(self._moving)
        moving = self._moving.repeat(branches, 1, 1)
        if self._due or self._t is None or len(self._t) != len(t):
            self._kv_cache.moving = None
        else:  # patches that have just moved are not to be seen as they were
            self._kv_cache.moving = self._widened(moving) | (t != self._t)
        self._due, self._t = False, t
        return self.denoiser(x_t, t, label, unique=unique, kv_cache=self._kv_cache)

    def _widened(self, moving: KnownPatches) -> KnownPatches:
        if not self.margin:
            return moving
        side = 2 * self.margin + 1
        return F.max_pool2d(moving[:, None].float(), side, stride=1, padding=self.margin)[:, 0] > 0

    def select(self, rows: Int64[Tensor, " n"]) -> "PartialUpdates":
        """Forget the other images of the walk."""
        if self._moving is not None:
            images = len(self._moving)
            branches = (self._kv_cache.rows or 0) // images
            all_rows = torch.cat([rows + images * k for k in range(branches)]) if branches else rows
            self._kv_cache.narrow(all_rows)
            self._t = None if self._t is None else self._t[all_rows]
            self._moving = self._moving[rows]
        return self
