"""Denoisers: callables denoiser(x_t, t, label) -> Prediction, the interface of training, sampling and likelihood."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from asyncdiff.denoising.targets import Target, VelocityTarget
from asyncdiff.noise.processes import Process
from asyncdiff.shapes import Image, Labels, LevelMap, Levels, level_map

LOGVAR_RANGE = (-30.0, 20.0)  # predicted log-variances are clamped to this range (Patch Forcing, arXiv:2604.19141)


@dataclass(frozen=True)
class Prediction:
    """Prediction of a denoiser for a noisy image, as velocity, clean image or noise.

    Attributes:
        process: noise process that converts between v, x and eps.
        x_t: noisy image.
        t: level map of `x_t`.
        v: predicted velocity; `x` and `eps` follow from it.
        logvar: predicted log of the velocity's squared error, averaged over the pixels of each patch; None if the
            network does not predict it. Its grid is the network's, even if `t` is coarser.
    """

    process: Process
    x_t: Image
    t: LevelMap
    v: Image
    logvar: Float[Tensor, "b lh lw"] | None = None

    @property
    def x(self) -> Image:
        """Predicted clean image."""
        return self.process.x_from_v(self.x_t, self.v, self.t)

    @property
    def eps(self) -> Image:
        """Predicted noise."""
        return self.process.eps_from_v(self.x_t, self.v, self.t)


@runtime_checkable
class DenoiserLike(Protocol):
    """Interface shared by trained networks (`Denoiser`), guided denoisers and exact oracles."""

    @property
    def process(self) -> Process:
        """Noise process of the predictions."""

    def __call__(self, x_t: Image, t: Levels, label: Labels | None = None) -> Prediction:
        """Predict every patch from the entire noisy image and level map.

        Args:
            x_t: noisy images.
            t: level maps of `x_t`; `IndexedLevels` saves a network a sort.
            label: class labels; None for unconditional predictions.

        Returns:
            The predicted velocity, clean image and noise.
        """

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the grid (gh, gw) of level maps for images of size (h, w)."""


class Denoiser(nn.Module):
    """Network with its noise process and target; predicts velocity, clean image and noise.

    Args:
        network: module (x_t, t, label) -> output, or (output, logvar) if it predicts its uncertainty, with a method
            grid((h, w)) -> (gh, gw). `t` may be `IndexedLevels`; `asyncdiff.shapes.level_map(t)` is the tensor.
            `asyncdiff.networks` has several.
        process: noise process.
        target: quantity that the network predicts; default: the velocity. A predicted log-variance always refers to the
            error of the velocity, on which it is trained.

    Examples:
        >>> import torch
        >>> from asyncdiff.networks import DiT
        >>> from asyncdiff.noise import RectifiedFlow
        >>> network = DiT(channels=3, patch_size=4, dim=32, depth=2, heads=4)
        >>> denoiser = Denoiser(network, RectifiedFlow())
        >>> t = torch.rand(2, *denoiser.grid((16, 16)))  # one level per patch
        >>> prediction = denoiser(torch.randn(2, 3, 16, 16), t)
        >>> t.shape, prediction.v.shape, prediction.x.shape
        (torch.Size([2, 4, 4]), torch.Size([2, 3, 16, 16]), torch.Size([2, 3, 16, 16]))
    """

    def __init__(self, network: nn.Module, process: Process, target: Target | None = None):
        super().__init__()
        self.network = network
        self.process = process
        self.target: Target = target or VelocityTarget()
        self.target.check(process)

    def forward(self, x_t: Image, t: Levels, label: Labels | None = None, *, kv_cache: Any | None = None) -> Prediction:
        """Return the network's prediction, in the precision of `x_t` even under autocast.

        Args:
            x_t: noisy images.
            t: level maps of `x_t`; `IndexedLevels` saves a network a sort.
            label: class labels; None for unconditional predictions.
            kv_cache: KV cache created by the network, to recompute some patches and reuse the others; None computes
                all.

        Returns:
            The predicted velocity, clean image and noise.
        """
        cache = {} if kv_cache is None else {"kv_cache": kv_cache}
        output = self.network(x_t, t, label, **cache)
        predicted, logvar = output if isinstance(output, tuple) else (output, None)
        if logvar is not None:
            logvar = logvar.to(x_t.dtype).clamp(*LOGVAR_RANGE)
        levels = level_map(t)
        v = self.target.velocity(self.process, predicted.to(x_t.dtype), x_t, levels)
        return Prediction(self.process, x_t, levels, v.to(x_t.dtype), logvar)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the grid (gh, gw) of level maps for images of size (h, w)."""
        grid: tuple[int, int] = self.network.grid(size)  # type: ignore[operator]
        return grid

    @property
    def null_label(self) -> int | None:
        """Label that means "unconditional"; None for a network without labels."""
        return int(getattr(self.network, "classes", 0)) or None
