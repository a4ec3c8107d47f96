"""Guidance: several evaluations of a denoiser, with something told or withheld, combined into one prediction."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from asyncdiff.checks import at_least, within
from asyncdiff.denoising.denoiser import DenoiserLike, Prediction
from asyncdiff.noise.processes import Process
from asyncdiff.randomness import RandomSource
from asyncdiff.sampling.partial_updates import PartialUpdates
from asyncdiff.shapes import Image, Labels, LevelMap, UniqueLevels, to_pixels, upsampled_to


class Guidance(ABC):
    """A rule that wraps a denoiser. Several are nested; all their branches go through the network as one batch.

    Both rules here are linear in the velocities, so that the order of nesting changes nothing but rounding.
    """

    @abstractmethod
    def begin(self, denoiser: DenoiserLike, source: RandomSource, shape: tuple[int, int, int]) -> DenoiserLike:
        """The guided denoiser for one walk of images of `shape` (c, h, w); what is random in it comes from `source`."""


class ClassifierFree(Guidance):
    """v = v_without + scale (v_with - v_without): towards the label, away from what is usual without it.

    Ho & Salimans, arXiv:2207.12598, where the scale is 1 + w; the interval is Kynkaanniemi et al., arXiv:2404.07724.
    Patches outside the interval are not guided, each by its own level. Without labels there is nothing to be guided by:
    the prediction is the unguided one.

    Args:
        scale: 1 is the unguided denoiser, exactly; 0 ignores the label.
        low: lowest level that is guided, in [0, 1].
        high: highest level that is guided, in [low, 1].
    """

    def __init__(self, scale: float, low: float = 0.0, high: float = 1.0):
        at_least("scale", scale, 0, "1 is off, 1.5 to 4 are usual")
        within("low", low, 0, 1, "low and high bound the levels that are guided")
        within("high", high, low, 1, "low and high bound the levels that are guided, low first")
        self.scale = scale
        self.low = low
        self.high = high

    def begin(self, denoiser: DenoiserLike, source: RandomSource, shape: tuple[int, int, int]) -> DenoiserLike:
        """The denoiser itself at scale 1."""
        return denoiser if self.scale == 1 else _ClassifierFree(denoiser, self)


class InputGuidance(Guidance):
    """v = v_clean + strength (v_clean - v_noisy): towards what goes with the given patches (arXiv:2606.07079).

    v_noisy sees the given patches, those at level 0, with noise added up to `level`; the noise of an image is the same
    at every step of its walk, so that the guided field stays one that solvers of higher order can follow.

    Args:
        strength: omega; 0 is the unguided denoiser, exactly. One number, or rows of numbers, one per patch of the level
            map or per block of patches.
        level: of the added noise, in (0, 1].
    """

    def __init__(self, strength: float | Sequence[Sequence[float]], level: float = 0.5):
        self.strength = strength
        self.level = level
        rows = [[strength]] if isinstance(strength, (int, float)) else [list(row) for row in strength]
        if len({len(row) for row in rows}) != 1 or not rows[0]:
            lengths = [len(row) for row in rows]
            raise ValueError(f"strength must be a number or rows of one length, got lengths {lengths}: fill them")
        for value in (value for row in rows for value in row):
            at_least("strength", value, 0, "0 is off, 0.5 to 2 are usual")
        if not 0 < level <= 1:
            raise ValueError(f"level must lie in (0, 1], got {level}: 0 would add no noise, 0.5 is usual")
        self._rows = torch.tensor(rows, dtype=torch.float64)

    def begin(self, denoiser: DenoiserLike, source: RandomSource, shape: tuple[int, int, int]) -> DenoiserLike:
        """The denoiser itself at strength 0."""
        if not self._rows.any():
            return denoiser
        strength = upsampled_to(self._rows[None], source.grid, "strength").expand(source.batch, *source.grid)
        noise = source.normal(*shape)
        return _InputGuided(denoiser, strength.to(noise), self.level, noise)


class Guided(ABC):
    """A denoiser around another one.

    Args:
        denoiser: the inner one.
    """

    def __init__(self, denoiser: DenoiserLike):
        self.denoiser = denoiser

    @property
    def process(self) -> Process:
        """The inner one's."""
        return self.denoiser.process

    @property
    def steady(self) -> bool:
        """Whether every call must have the same branches: what a network remembers would be of others otherwise."""
        return bool(getattr(self.denoiser, "steady", False))

    @property
    def null_label(self) -> int | None:
        """The inner one's."""
        return getattr(self.denoiser, "null_label", None)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """The inner one's."""
        return self.denoiser.grid(size)

    @abstractmethod
    def __call__(
        self, x_t: Image, t: LevelMap, label: Labels | None = None, *, unique: UniqueLevels | None = None
    ) -> Prediction:
        """The prediction; its log-variances, where there are any, are those of the unguided velocity."""

    @abstractmethod
    def select(self, rows: Int64[Tensor, " n"]) -> DenoiserLike:
        """The same for some of the images of the walk."""


def select(denoiser: DenoiserLike, rows: Int64[Tensor, " n"]) -> DenoiserLike:
    """A walk's denoiser for some of its images; one that keeps nothing of them is the same for all."""
    return denoiser.select(rows) if isinstance(denoiser, (Guided, PartialUpdates)) else denoiser


class _ClassifierFree(Guided):
    def __init__(self, denoiser: DenoiserLike, rule: ClassifierFree):
        super().__init__(denoiser)
        self.rule = rule

    def __call__(
        self, x_t: Image, t: LevelMap, label: Labels | None = None, *, unique: UniqueLevels | None = None
    ) -> Prediction:
        """Two evaluations as one batch; one where no patch lies in the interval."""
        if label is None:  # "no label" told and "no label" withheld are one prediction
            return self.denoiser(x_t, t, unique=unique)
        guided = (t >= self.rule.low) & (t <= self.rule.high) & (t > 0)
        if not guided.any() and not self.steady:
            return self.denoiser(x_t, t, label, unique=unique)
        null = getattr(self.denoiser, "null_label", None)
        if null is None:
            raise ValueError("label guidance needs a denoiser that knows labels, got one without: leave it out")
        labels = torch.cat([label, torch.full_like(label, null)])
        both = self.denoiser(x_t.repeat(2, 1, 1, 1), t.repeat(2, 1, 1), labels)
        with_label, without = both.v.chunk(2)
        scale = torch.where(guided, self.rule.scale, 1.0).to(x_t.dtype)
        # Written from the labelled side: where the scale is 1 nothing is added, bit for bit.
        v = with_label + to_pixels(scale - 1, (x_t.shape[2], x_t.shape[3])) * (with_label - without)
        return Prediction(self.process, x_t, t, v, None if both.logvar is None else both.logvar.chunk(2)[0])

    def select(self, rows: Int64[Tensor, " n"]) -> DenoiserLike:
        return _ClassifierFree(select(self.denoiser, rows), self.rule)


class _InputGuided(Guided):
    def __init__(self, denoiser: DenoiserLike, strength: LevelMap, level: float, noise: Image):
        super().__init__(denoiser)
        self.strength = strength
        self.level = level
        self.noise = noise

    def __call__(
        self, x_t: Image, t: LevelMap, label: Labels | None = None, *, unique: UniqueLevels | None = None
    ) -> Prediction:
        """Two evaluations as one batch; one where no patch is given."""
        given = t == 0
        if (not given.any() or given.all()) and not self.steady:
            return self.denoiser(x_t, t, label, unique=unique)
        size = (x_t.shape[2], x_t.shape[3])
        t_noisy = torch.where(given, self.level, t)
        branches = len(x_t) // len(self.noise)  # of a guidance around this one
        noise, strength = self.noise.repeat(branches, 1, 1, 1), self.strength.repeat(branches, 1, 1)
        noised = self.process.noised(x_t, noise.to(x_t.dtype), t_noisy)
        x_noisy = torch.where(to_pixels(given, size), noised, x_t)
        labels = None if label is None else torch.cat([label, label])
        both = self.denoiser(torch.cat([x_t, x_noisy]), torch.cat([t, t_noisy]), labels)
        clean, noisy = both.v.chunk(2)
        guided = clean + to_pixels(strength.to(x_t.dtype), size) * (clean - noisy)
        # Without given patches the branches are equal but for rounding.
        v = torch.where(to_pixels(given | ~given.flatten(1).any(1)[:, None, None], size), clean, guided)
        return Prediction(self.process, x_t, t, v, None if both.logvar is None else both.logvar.chunk(2)[0])

    def select(self, rows: Int64[Tensor, " n"]) -> DenoiserLike:
        return _InputGuided(select(self.denoiser, rows), self.strength[rows], self.level, self.noise[rows])
