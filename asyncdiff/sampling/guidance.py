"""Guidance: combine network evaluations with and without a condition into one prediction."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from asyncdiff.checks import MAX_GUIDANCE, at_least, within
from asyncdiff.denoising.denoiser import DenoiserLike, Prediction
from asyncdiff.devices import to_device
from asyncdiff.noise.processes import Process
from asyncdiff.randomness import RandomSource
from asyncdiff.sampling.hosted_levels import HostedLevels, levels_on_host
from asyncdiff.sampling.partial_updates import PartialUpdates
from asyncdiff.shapes import Image, IndexedLevels, Labels, LevelMap, Levels, level_map, to_pixels, upsampled_to


class Guidance(ABC):
    """Base class of guidance rules: wraps a denoiser for one sampling trajectory.

    Rules can be nested; all their branches go through the network as one batch. `ClassifierFree` and `InputGuidance`
    are linear in the velocities, so the order of nesting changes nothing except rounding.
    """

    @abstractmethod
    def begin(self, denoiser: DenoiserLike, source: RandomSource, shape: tuple[int, int, int]) -> DenoiserLike:
        """Return the guided denoiser for one sampling trajectory.

        Args:
            denoiser: denoiser to guide.
            source: random numbers for the guidance; also gives the batch size and the grid of the level map.
            shape: (c, h, w) of every image.

        Returns:
            The guided denoiser, or `denoiser` itself if the guidance has no effect.
        """


class ClassifierFree(Guidance):
    """Classifier-free guidance: v = v_uncond + scale (v_cond - v_uncond).

    Ho & Salimans, arXiv:2207.12598, where the scale is called 1 + w; with the guidance interval of Kynkaanniemi et al.,
    arXiv:2404.07724: a patch is guided only while its own level lies in [low, high]. Use it to trade diversity for
    agreement with the class label, at twice the computation per step. Without labels the prediction is the unguided
    one.

    Args:
        scale: guidance scale; 1 is exactly the unguided denoiser, 0 ignores the label.
        low: lowest level that is guided, in [0, 1].
        high: highest level that is guided, in [low, 1].
    """

    def __init__(self, scale: float, low: float = 0.0, high: float = 1.0):
        at_least("scale", scale, 0, "1 turns guidance off, 1.5 to 4 are typical", MAX_GUIDANCE)
        within("low", low, 0, 1, "guidance applies to levels from low to high")
        within("high", high, low, 1, "guidance applies to levels from low to high")
        self.scale = scale
        self.low = low
        self.high = high

    def begin(self, denoiser: DenoiserLike, source: RandomSource, shape: tuple[int, int, int]) -> DenoiserLike:
        """Return the guided denoiser; at scale 1 the denoiser itself."""
        return denoiser if self.scale == 1 else _ClassifierFreeDenoiser(denoiser, self)


class InputGuidance(Guidance):
    """Input guidance of AsyncPatch Diffusion (arXiv:2606.07079): v = v_clean + strength (v_clean - v_noisy).

    v_noisy sees the known patches (those at level 0) with noise added up to `level`, so the difference points towards
    images that agree with the known patches. Use it for inpainting. The noise of an image is the same in every step, so
    the guided field stays smooth enough for solvers of higher order.

    Args:
        strength: guidance strength, omega in the paper; 0 is exactly the unguided denoiser. One number, or rows of
            numbers, one per patch of the level map or per block of patches.
        level: noise level of the known patches in v_noisy, in (0, 1].
    """

    def __init__(self, strength: float | Sequence[Sequence[float]], level: float = 0.5):
        self.strength = strength
        self.level = level
        rows = [[strength]] if isinstance(strength, (int, float)) else [list(row) for row in strength]
        if len({len(row) for row in rows}) != 1 or not rows[0]:
            lengths = [len(row) for row in rows]
            raise ValueError(f"strength must be a number or rows of equal length, got lengths {lengths}: pad the rows")
        for value in (value for row in rows for value in row):
            at_least("strength", value, 0, "0 turns guidance off, 0.5 to 2 are typical", MAX_GUIDANCE)
        if not 0 < level <= 1:
            raise ValueError(f"level must lie in (0, 1], got {level}: the default is 0.5, 0 would add no noise")
        self._rows = torch.tensor(rows, dtype=torch.float64)

    def begin(self, denoiser: DenoiserLike, source: RandomSource, shape: tuple[int, int, int]) -> DenoiserLike:
        """Return the guided denoiser; at strength 0 the denoiser itself."""
        if not self._rows.any():
            return denoiser
        strength = upsampled_to(self._rows[None], source.grid, "strength").expand(source.batch, *source.grid)
        noise = source.normal(*shape)
        return _InputGuidedDenoiser(denoiser, to_device(strength.to(noise.dtype), noise.device), self.level, noise)


class GuidedDenoiser(ABC):
    """Base class of guided denoisers: a denoiser that wraps another one.

    Args:
        denoiser: denoiser to guide.
    """

    def __init__(self, denoiser: DenoiserLike):
        self.denoiser = denoiser

    @property
    def process(self) -> Process:
        """Noise process of the wrapped denoiser."""
        return self.denoiser.process

    @property
    def fixed_branches(self) -> bool:
        """Whether every call must evaluate the same branches, because a KV cache holds a row for each of them."""
        return bool(getattr(self.denoiser, "fixed_branches", False))

    @property
    def null_label(self) -> int | None:
        """Label that means "no label"; None for a denoiser without labels."""
        return getattr(self.denoiser, "null_label", None)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the level map's grid (gh, gw) for images of (h, w)."""
        return self.denoiser.grid(size)

    @abstractmethod
    def __call__(self, x_t: Image, t: Levels, label: Labels | None = None) -> Prediction:
        """Return the guided prediction; its log-variance, if any, is that of the unguided velocity."""

    @abstractmethod
    def select(self, rows: Int64[Tensor, " n"]) -> DenoiserLike:
        """Return the denoiser for the images `rows` only; `rows` are on the CPU."""

    def finish(self) -> None:
        """Raise the errors that a GPU has found since the last call, before the results are returned."""
        finish(self.denoiser)


def select(denoiser: DenoiserLike, rows: Int64[Tensor, " n"]) -> DenoiserLike:
    """Return a trajectory's denoiser for the images `rows` only; stateless denoisers are returned unchanged."""
    return denoiser.select(rows) if isinstance(denoiser, (GuidedDenoiser, PartialUpdates)) else denoiser


def finish(denoiser: DenoiserLike) -> None:
    """End a trajectory: raise the errors that a GPU has found in it, before its results are returned."""
    if isinstance(denoiser, GuidedDenoiser):
        denoiser.finish()


class _ClassifierFreeDenoiser(GuidedDenoiser):
    def __init__(self, denoiser: DenoiserLike, rule: ClassifierFree):
        super().__init__(denoiser)
        self.rule = rule

    def __call__(self, x_t: Image, t: Levels, label: Labels | None = None) -> Prediction:
        if label is None:  # both branches would be the same
            return self.denoiser(x_t, t)
        if not self.fixed_branches and not self._guided(levels_on_host(t)).any():
            return self.denoiser(x_t, t, label)
        if self.null_label is None:
            raise ValueError(
                "ClassifierFree needs a class-conditional denoiser, got one without labels: remove this guidance"
            )
        labels = torch.cat([label, torch.full_like(label, self.null_label)])
        both = self.denoiser(x_t.repeat(2, 1, 1, 1), t.repeat(2, 1, 1), labels)
        conditional, unconditional = both.v.chunk(2)
        levels = level_map(t)
        scale = torch.where(self._guided(levels), self.rule.scale, 1.0).to(x_t.dtype)
        # Written as a change to the conditional branch: at scale 1 it adds exactly zero.
        v = conditional + to_pixels(scale - 1, (x_t.shape[2], x_t.shape[3])) * (conditional - unconditional)
        return Prediction(self.process, x_t, levels, v, None if both.logvar is None else both.logvar.chunk(2)[0])

    def _guided(self, levels: Float[Tensor, "*levels"]) -> Bool[Tensor, "*levels"]:
        """Return whether each of these levels is guided."""
        return (levels >= self.rule.low) & (levels <= self.rule.high) & (levels > 0)

    def select(self, rows: Int64[Tensor, " n"]) -> DenoiserLike:
        return _ClassifierFreeDenoiser(select(self.denoiser, rows), self.rule)


class _InputGuidedDenoiser(GuidedDenoiser):
    def __init__(self, denoiser: DenoiserLike, strength: LevelMap, level: float, noise: Image):
        super().__init__(denoiser)
        self.strength = strength
        self.level = level
        self.noise = noise

    def __call__(self, x_t: Image, t: Levels, label: Labels | None = None) -> Prediction:
        clean = levels_on_host(t) == 0
        if not self.fixed_branches and (not clean.any() or clean.all()):
            return self.denoiser(x_t, t, label)
        size, levels = (x_t.shape[2], x_t.shape[3]), level_map(t)
        known = levels == 0
        t_noisy = self._noisy(levels)
        branches = len(x_t) // len(self.noise)  # more than one if another guidance wraps this one
        noise, strength = self.noise.repeat(branches, 1, 1, 1), self.strength.repeat(branches, 1, 1)
        noised = self.process.noised(x_t, noise.to(x_t.dtype), t_noisy)
        x_noisy = torch.where(to_pixels(known, size), noised, x_t)
        labels = None if label is None else torch.cat([label, label])
        both = self.denoiser(torch.cat([x_t, x_noisy]), self._both(t, t_noisy), labels)
        clean, noisy = both.v.chunk(2)
        guided = clean + to_pixels(strength.to(x_t.dtype), size) * (clean - noisy)
        # In images without known patches the branches differ by rounding only: leave those unguided.
        v = torch.where(to_pixels(known | ~known.flatten(1).any(1)[:, None, None], size), clean, guided)
        return Prediction(self.process, x_t, levels, v, None if both.logvar is None else both.logvar.chunk(2)[0])

    def _noisy(self, levels: Float[Tensor, "*levels"]) -> Float[Tensor, "*levels"]:
        """Return the levels that v_noisy sees."""
        return torch.where(levels == 0, self.level, levels)

    def _both(self, t: Levels, t_noisy: LevelMap) -> Float[Tensor, "both gh gw"] | IndexedLevels:
        """Return the level maps `t` and `t_noisy` as one batch; for a GPU, the host finds their distinct levels."""
        levels = torch.cat([level_map(t), t_noisy])
        if not isinstance(t, HostedLevels) or levels.device.type == "cpu":
            return levels
        values, place = torch.cat([t.host_values, self._noisy(t.host_values)]).unique(return_inverse=True)
        clean, noisy = to_device(place, t.index.device).split(len(t.host_values))
        host = None if t.host is None else torch.cat([t.host, self._noisy(t.host)])
        index = torch.cat([clean[t.index], noisy[t.index]])
        return HostedLevels(to_device(values, index.device), index, levels, host, values)

    def select(self, rows: Int64[Tensor, " n"]) -> DenoiserLike:
        there = to_device(rows, self.noise.device)
        return _InputGuidedDenoiser(select(self.denoiser, rows), self.strength[there], self.level, self.noise[there])
