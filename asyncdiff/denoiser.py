"""The one callable that joins everything: denoiser(x_t, t, label) -> Prediction."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from asyncdiff.processes import Process
from asyncdiff.shapes import Distinct, Image, Labels, LevelMap


@dataclass(frozen=True)
class Prediction:
    """What a denoiser believes about the clean image behind `x_t`.

    Attributes:
        process: the noise process that relates the forms.
        x_t: the noisy image.
        t: its level map.
        v: the velocity; `x` and `eps` follow from it.
        logvar: log-variance of the velocity's error per patch, where the network predicts it.
    """

    process: Process
    x_t: Image
    t: LevelMap
    v: Image
    logvar: LevelMap | None = None

    @property
    def x(self) -> Image:
        """The clean image."""
        return self.process.x_from_v(self.x_t, self.v, self.t)

    @property
    def eps(self) -> Image:
        """The noise."""
        return self.process.eps_from_v(self.x_t, self.v, self.t)


@runtime_checkable
class Denoise(Protocol):
    """The signature shared by trained networks, guidance and exact oracles."""

    process: Process

    def __call__(
        self, x_t: Image, t: LevelMap, label: Labels | None = None, *, distinct: Distinct | None = None
    ) -> Prediction:
        """The prediction for every patch, from the whole noisy image and the whole level map."""

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """The level map's grid (gh, gw) for images of (h, w)."""


class Denoiser(nn.Module):
    """A network that predicts the velocity, with the process that it belongs to.

    Args:
        network: callable (x_t, t, label, distinct=...) -> v, with a method grid((h, w)) -> (gh, gw).
        process: the noise process.
    """

    def __init__(self, network: nn.Module, process: Process):
        super().__init__()
        self.network = network
        self.process = process

    def forward(
        self, x_t: Image, t: LevelMap, label: Labels | None = None, *, distinct: Distinct | None = None
    ) -> Prediction:
        """The network's prediction, in the precision of `x_t` whatever autocast computed in."""
        v: Tensor = self.network(x_t, t, label, distinct=distinct)
        return Prediction(self.process, x_t, t, v.to(x_t.dtype))

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """The level map's grid (gh, gw) for images of (h, w)."""
        grid: tuple[int, int] = self.network.grid(size)  # type: ignore[operator]
        return grid
