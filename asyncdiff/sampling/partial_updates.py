"""Partial updates: compute only moving patches, and take the others from a KV cache."""

import torch
import torch.nn.functional as F
from jaxtyping import Int64
from torch import Tensor

from asyncdiff.denoising.denoiser import Denoiser, DenoiserLike, Prediction
from asyncdiff.noise.processes import Process
from asyncdiff.sampling.hosted_levels import map_on_host
from asyncdiff.shapes import Image, KnownPatches, Labels, LevelMap, Levels


class PartialUpdates:
    """Denoiser for one sampling trajectory that evaluates only moving patches, and all patches every `refresh` steps.

    Patches that do not move (known, finished or waiting) are computed once at their level; their keys and values then
    stay in the cache that the moving ones attend to. How moving patches would have changed them is ignored until the
    next refresh: this is an approximation, unless `refresh` is 1.

    The first step computes all patches; later refreshes come half an interval after the multiples of `refresh`. In
    strict order with `refresh` steps per patch they then fall in the middle of each patch's steps. With a refresh at
    its first step, the other patches would only ever see the patch as noise.

    Which patches are computed is decided on the host, from level maps that it knows, so that nothing waits for a GPU.

    Args:
        denoiser: denoiser whose network has a KV cache, such as `asyncdiff.networks.DiT`.
        refresh: number of steps between evaluations of all patches.
        margin: between refreshes, also recompute patches within this many patches of a moving one.

    Attributes:
        moving: patches that the next evaluations must predict, None at first for all; setting it counts a step.
    """

    def __init__(self, denoiser: DenoiserLike, refresh: int, margin: int = 0):
        if not isinstance(denoiser, Denoiser) or not hasattr(denoiser.network, "kv_cache"):
            kind = type(getattr(denoiser, "network", denoiser)).__name__
            raise ValueError(
                f"refresh must be 1 for {kind}, which has no KV cache, got {refresh}: omit refresh, or use a DiT"
            )
        self.denoiser = denoiser
        self.refresh = refresh
        self.margin = margin
        self._kv_cache = denoiser.network.kv_cache()  # type: ignore[operator]
        self._moving: KnownPatches | None = None
        self._t: LevelMap | None = None
        self._steps = -1
        self._refresh_next = True

    @property
    def moving(self) -> KnownPatches | None:
        """Patches that the next evaluations must predict; None means all."""
        return self._moving

    @moving.setter
    def moving(self, patches: KnownPatches) -> None:
        self._moving = patches.cpu()
        self._steps += 1
        self._refresh_next = self._refresh_next or (self._steps + self.refresh // 2) % self.refresh == 0

    @property
    def fixed_branches(self) -> bool:
        """Always True: guidance must evaluate the same branches in every step, since the cache has a row for each."""
        return True

    @property
    def process(self) -> Process:
        """Noise process of the denoiser."""
        return self.denoiser.process

    @property
    def null_label(self) -> int | None:
        """Label that means "no label"; None for a network without labels."""
        return self.denoiser.null_label

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the level map's grid (gh, gw) for images of (h, w)."""
        return self.denoiser.grid(size)

    def __call__(self, x_t: Image, t: Levels, label: Labels | None = None) -> Prediction:
        """Return the prediction, freshly computed for moving patches and cached for the others."""
        levels = map_on_host(t)
        if self._refresh_next or self._moving is None or self._t is None or len(self._t) != len(levels):
            self._kv_cache.moving = None
        else:  # patches that moved in the last step must be computed at their new level
            moving = self._moving.repeat(len(levels) // len(self._moving), 1, 1)
            self._kv_cache.moving = self._dilate(moving) | (levels != self._t)
        self._refresh_next, self._t = False, levels
        return self.denoiser(x_t, t, label, kv_cache=self._kv_cache)

    def _dilate(self, moving: KnownPatches) -> KnownPatches:
        """Add the patches within `margin` of moving ones."""
        if not self.margin:
            return moving
        margin = min(self.margin, max(moving.shape[1:]))  # a larger one reaches no other patches
        return F.max_pool2d(moving[:, None].float(), 2 * margin + 1, stride=1, padding=margin)[:, 0] > 0

    def select(self, rows: Int64[Tensor, " n"]) -> "PartialUpdates":
        """Keep only the images `rows`, in place; `rows` are on the CPU."""
        if self._moving is not None:
            images = len(self._moving)
            branches = (self._kv_cache.rows or 0) // images
            all_rows = torch.cat([rows + images * k for k in range(branches)]) if branches else rows
            self._kv_cache.select(all_rows)
            self._t = None if self._t is None else self._t[all_rows]
            self._moving = self._moving[rows]
        return self
