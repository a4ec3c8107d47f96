"""The one callable that joins everything: denoiser(x_t, t, label) -> Prediction."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from asyncdiff.denoising.targets import Target, VelocityTarget
from asyncdiff.noise.processes import Process
from asyncdiff.shapes import Image, Labels, LevelMap, UniqueLevels

LOGVAR = (-30.0, 20.0)  # bounds of a predicted log-variance (Patch Forcing, arXiv:2604.19141)


@dataclass(frozen=True)
class Prediction:
    """What a denoiser believes about the clean image behind `x_t`.

    Attributes:
        process: the noise process that relates the forms.
        x_t: the noisy image.
        t: its level map.
        v: the velocity; `x` and `eps` follow from it.
        logvar: log of the expected squared error of the velocity, mean over each patch's pixels, where the network
            predicts it; on the network's grid, also where `t` is coarser.
    """

    process: Process
    x_t: Image
    t: LevelMap
    v: Image
    logvar: Float[Tensor, "b lh lw"] | None = None

    @property
    def x(self) -> Image:
        """The clean image."""
        return self.process.x_from_v(self.x_t, self.v, self.t)

    @property
    def eps(self) -> Image:
        """The noise."""
        return self.process.eps_from_v(self.x_t, self.v, self.t)


@runtime_checkable
class DenoiserLike(Protocol):
    """The signature shared by trained networks, guidance and exact oracles."""

    @property
    def process(self) -> Process:
        """The noise process."""

    def __call__(
        self, x_t: Image, t: LevelMap, label: Labels | None = None, *, unique: UniqueLevels | None = None
    ) -> Prediction:
        """The prediction for every patch, from the whole noisy image and the whole level map."""

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """The level map's grid (gh, gw) for images of (h, w)."""


class Denoiser(nn.Module):
    """A network, with the process that it belongs to and what it predicts.

    Args:
        network: callable (x_t, t, label, distinct=...) -> output, or (output, logvar) where it predicts its
            uncertainty, with a method grid((h, w)) -> (gh, gw).
        process: the noise process.
        target: what the output stands for; the velocity by default. A predicted log-variance is that of the
            velocity's error whatever the target: this is the error that heads are trained on.
    """

    def __init__(self, network: nn.Module, process: Process, target: Target | None = None):
        super().__init__()
        self.network = network
        self.process = process
        self.target: Target = target or VelocityTarget()
        self.target.check(process)

    def forward(
        self,
        x_t: Image,
        t: LevelMap,
        label: Labels | None = None,
        *,
        unique: UniqueLevels | None = None,
        kv_cache: Any | None = None,
    ) -> Prediction:
        """The network's prediction, in the precision of `x_t` whatever autocast computed in.

        `kv_cache` is one of the network's own, where it can compute some patches and remember the others.
        """
        remembered = {} if kv_cache is None else {"kv_cache": kv_cache}
        output = self.network(x_t, t, label, unique=unique, **remembered)
        predicted, logvar = output if isinstance(output, tuple) else (output, None)
        if logvar is not None:
            logvar = logvar.to(x_t.dtype).clamp(*LOGVAR)
        v = self.target.velocity(self.process, predicted.to(x_t.dtype), x_t, t)
        return Prediction(self.process, x_t, t, v.to(x_t.dtype), logvar)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """The level map's grid (gh, gw) for images of (h, w)."""
        grid: tuple[int, int] = self.network.grid(size)  # type: ignore[operator]
        return grid

    @property
    def null_label(self) -> int | None:
        """The label that means "no label", None for a network without labels."""
        return int(getattr(self.network, "classes", 0)) or None
