"""State of one sampling trajectory, and the inputs that all of its steps share."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from asyncdiff.denoising.denoiser import DenoiserLike, Prediction
from asyncdiff.devices import to_device
from asyncdiff.randomness import RandomSource, normal
from asyncdiff.sampling.guidance import select
from asyncdiff.sampling.hosted_levels import HostedLevels, map_on_host
from asyncdiff.sampling.partial_updates import PartialUpdates
from asyncdiff.shapes import Image, KnownPatches, KnownPixels, Labels, LevelMap, Levels

T = TypeVar("T")


def last(states: Iterable[T]) -> T:
    """Return the last of at least one state, without storing the others."""
    return deque(states, maxlen=1).pop()


@dataclass(frozen=True)
class Frame:
    """One state of a sampling trajectory.

    Attributes:
        x_t: noisy images, (b, c, h, w).
        t: their level maps, (b, gh, gw).
        s: progress, from 1 (pure noise) to 0 (done).
    """

    x_t: Image
    t: LevelMap
    s: float


@dataclass(frozen=True)
class Start:
    """Inputs of one sampling trajectory: denoiser, initial state, known pixels and random numbers.

    Attributes:
        denoiser: denoiser with all guidance applied.
        x_t: initial state: the image in known patches, the noised image where `levels` lies between 0 and 1, pure noise
            elsewhere.
        eps: initial noise.
        known_patches: mask of known patches, True = known; these stay at level 0. All False without an image.
        host_known_patches: the same mask on the CPU, where level maps are computed.
        label: class of every image; None if unconditional.
        source: random numbers for the noise path, from one generator per image, in at least float32, so that small
            steps are not rounded away.
        image: images with the known pixels; None if nothing is known.
        known: mask of known pixels, True = known; None without an image.
        partial_updates: wrapper that computes only moving patches; None if every evaluation computes all patches.
        cut: mask of known pixels inside unknown patches, with a channel axis; None if there are none.
        host_levels: initial level map, on the CPU; None if every unknown patch starts as pure noise.
    """

    denoiser: DenoiserLike
    x_t: Image
    eps: Image
    known_patches: KnownPatches
    host_known_patches: KnownPatches
    label: Labels | None
    source: RandomSource
    image: Image | None = None
    known: KnownPixels | None = None
    partial_updates: PartialUpdates | None = None
    cut: Bool[Tensor, "b 1 h w"] | None = None
    host_levels: LevelMap | None = None

    @property
    def device(self) -> torch.device:
        """Device of the images."""
        return self.x_t.device

    @property
    def host_source(self) -> RandomSource:
        """Random numbers for the noise path, whose level maps are computed on the CPU."""
        return replace(self.source, device="cpu")

    def evaluate(self, x_t: Image, t: Levels) -> Prediction:
        """Return the prediction for noisy images `x_t` at level map `t`, conditioned on their labels."""
        return self.denoiser(x_t, t, self.label)

    def set_moving(self, patches: KnownPatches) -> None:
        """Set which patches the next step moves; with partial updates, predictions for the others may be stale.

        Args:
            patches: True for moving patches; on the CPU, so that nothing waits for the device.
        """
        if self.partial_updates is not None:
            self.partial_updates.moving = patches

    def moves(self, t: HostedLevels, to: HostedLevels) -> bool:
        """Return whether any patch moves in the step from `t` to `to`, and set which ones."""
        if t is to and self.partial_updates is None:
            return False
        moving = map_on_host(to) < map_on_host(t)
        self.set_moving(moving)
        return bool(moving.any())

    def with_known_pixels(self, x_t: Image, t: LevelMap) -> Image:
        """Return `x_t` with known pixels of unknown patches replaced by the image, noised to the level of their patch.

        This shows the network what these pixels contain, at no cost; Song et al., arXiv:2011.13456, inpaint by such
        replacement alone. The noise is the initial `eps`, so that these pixels follow the path that the unguided flow
        would take to them.
        """
        if self.image is None or self.cut is None:
            return x_t
        noised = self.denoiser.process.noised(self.image, self.eps, t.to(x_t.dtype))
        return torch.where(self.cut, noised, x_t)

    def finished(self, frame: Frame) -> Frame:
        """Return the last state with its known pixels replaced by those of the image, bit for bit."""
        if self.image is None or self.known is None:
            return frame
        return replace(frame, x_t=torch.where(self.known[:, None], self.image, frame.x_t))

    def noise(self) -> Image:
        """Draw fresh standard normal noise of the shape of `x_t`; image i uses its own generator."""
        return normal(self.x_t.shape, generator=self.source.generator, device=self.x_t.device, dtype=self.x_t.dtype)

    def select(self, rows: Int64[Tensor, " n"]) -> "Start":
        """Return the inputs for the images `rows` only; `rows` are on the CPU."""
        there = to_device(rows, self.device)
        return replace(
            self,
            denoiser=select(self.denoiser, rows),
            x_t=self.x_t[there],
            eps=self.eps[there],
            known_patches=self.known_patches[there],
            host_known_patches=self.host_known_patches[rows],
            label=None if self.label is None else self.label[there],
            source=self.source.select(rows.tolist()),
            image=None if self.image is None else self.image[there],
            known=None if self.known is None else self.known[there],
            cut=None if self.cut is None else self.cut[there],
            host_levels=None if self.host_levels is None else self.host_levels[rows],
        )
