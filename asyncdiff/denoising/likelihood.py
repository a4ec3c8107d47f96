"""The bound on -log p(x) along any noise path: prior, diffusion and reconstruction, and where in the image they are.

For every path drawn independently of x, with x_t the image noised to the level map t(s),

    -log p(x) <= KL(q(x_1 | x) || N(0, I)) + E int_0^1 1/2 sum_i (-dSNR/dt)(t_i) dt_i/ds ||x_i - x_hat_i||^2 ds
                 - E log p(x | x_0),

an equality for a perfect denoiser, on every path: what differs between paths is what the network is inconsistent by.
AsyncPatch Diffusion (arXiv:2606.07079) proves a bound for levels that differ between patches; the line integral is that
of VDM (arXiv:2107.00630) and MuLAN (arXiv:2312.13236) along curves of level maps. On a path that holds known patches at
t = 0 it bounds -log p(unknown | known).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from asyncdiff.checks import at_least
from asyncdiff.denoising.denoiser import DenoiserLike
from asyncdiff.denoising.weightings import ELBO
from asyncdiff.noise.paths import Conditioned, Curve, Floored, Path, Synchronous
from asyncdiff.noise.processes import Process
from asyncdiff.noise.progress import FluxProgress, ProgressSampler, UniformProgress
from asyncdiff.randomness import Generators, forked, normal, uniform
from asyncdiff.shapes import (
    Image,
    KnownPatches,
    Labels,
    LevelMap,
    known_patches,
    sum_per_patch,
    to_pixels,
)

# Upper edges of the bins of `by_level`: the integrand goes as 1/t towards the clean end.
LEVEL_EDGES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


class Decoder(ABC):
    """-log p(x | x_t) of every pixel at the lowest level of a path.

    Attributes:
        unit: what `Bound.rate` is given in.
        nats: nats in one of that unit.
        finest: sigma / alpha at which a path had best end by default: what is finer is the decoder's business.
    """

    unit: str
    nats: float
    finest: float

    @abstractmethod
    def __call__(self, process: Process, x: Image, x_t: Image, t: LevelMap) -> Image:
        """Nats of every pixel, given `x_t` at level map `t`, all above 0."""

    def check(self, x: Image) -> None:  # noqa: B027  densities take all values
        """Raise ValueError for images that the decoder gives no probability."""


class CategoricalDecoder(Decoder):
    """Pixels that take one of several equidistant values from -1 to 1, such as 8-bit ones: bits per dimension.

    p(x | x_t) is the categorical with logits -(x_t - alpha v_j)^2 / (2 sigma^2) over the values v_j (VDM, section 3.3).

    Args:
        values: how many values a pixel can take.
    """

    unit = "bits/dim"
    nats = math.log(2)

    def __init__(self, values: int = 256):
        at_least("values", values, 2, "256 are 8 bits")
        self.values = values
        # A quarter of a step, logSNR 12.5 for 8 bits (VDM's ends at 13.3): from there on a network that does not know
        # that values are discrete pays log 2 for every halving of the noise, the decoder nearly nothing.
        self.finest = 0.25 * 2 / (values - 1)

    def __call__(self, process: Process, x: Image, x_t: Image, t: LevelMap) -> Image:
        """Nats of the discrete probability; ValueError for pixels between the values."""
        self.check(x)
        step = 2 / (self.values - 1)
        size = (x.shape[2], x.shape[3])
        alpha, sigma = to_pixels(process.alpha(t), size), to_pixels(process.sigma(t), size)

        def logit(value: Tensor | float) -> Tensor:
            return -((x_t - alpha * value) / sigma).square() / 2

        # One value after the other: all at once would take 256 times the memory of the images.
        total = torch.full_like(x_t, -math.inf)
        for j in range(self.values):
            total = torch.logaddexp(total, logit(-1 + j * step))
        return total - logit(-1 + ((x + 1) / step).round() * step)

    def check(self, x: Image) -> None:
        """Refuse pixels between the values or outside [-1, 1]."""
        place = (x + 1) * ((self.values - 1) / 2)
        off = (place - place.round().clamp(0, self.values - 1)).abs().amax() if x.numel() else torch.zeros(())
        if not off < 0.1:  # of a step: float16 rounds 256 values by 0.03; NaN is refused, too
            raise ValueError(
                f"pixels must take {self.values} equidistant values from -1 to 1, got one {float(off):.2f} steps off: "
                "give the number of values of the data, or GaussianDecoder for continuous ones"
            )


class GaussianDecoder(Decoder):
    """Continuous values, such as latents: -log N(x; x_t / alpha, sigma^2 / alpha^2), nats of a density per dimension.

    Its expectation over x_t, 1/2 log(2 pi e / SNR), is used: it does not depend on x. Never call it bits per pixel.
    """

    unit = "nats/dim"
    nats = 1.0
    finest = 1e-3

    def __call__(self, process: Process, x: Image, x_t: Image, t: LevelMap) -> Image:
        """The expected nats of a density."""
        nats = 0.5 * (math.log(2 * math.pi * math.e) - process.logsnr(t))
        return to_pixels(nats, (x.shape[2], x.shape[3])).expand_as(x)


@dataclass(frozen=True)
class Bound:
    """An upper bound on -log p of every image, in nats summed over its unknown patches, apart by term and place.

    Attributes:
        prior: KL of the end of the path from N(0, I); 0 where alpha(1) = 0.
        diffusion: the integral, or the sum over steps.
        reconstruction: the decoder's part; negative for densities on a scale finer than 1.
        noise: standard error of `diffusion` as an estimate, as if its points were independent (stratified ones have
            less); NaN where it cannot be told.
        dims: number of unknown values.
        per_patch: all three terms together, by patch; 0 where known.
        by_level: `diffusion` by the level t of the patch it came from, in bins with upper edges `LEVEL_EDGES`.
        decoder: says what the unit is.
    """

    prior: Float[Tensor, " b"]
    diffusion: Float[Tensor, " b"]
    reconstruction: Float[Tensor, " b"]
    noise: Float[Tensor, " b"]
    dims: Float[Tensor, " b"]
    per_patch: LevelMap
    by_level: Float[Tensor, "b bins"]
    decoder: Decoder

    @property
    def total(self) -> Float[Tensor, " b"]:
        """The bound in nats."""
        return self.prior + self.diffusion + self.reconstruction

    @property
    def rate(self) -> Float[Tensor, " b"]:
        """The bound per unknown dimension in `decoder.unit`; 0 for an image of which everything is known."""
        return self.total / self.dims.clamp(min=1) / self.decoder.nats


@torch.no_grad()
def bound(
    denoiser: DenoiserLike,
    x: Image,
    path: Path | None = None,
    *,
    label: Labels | None = None,
    known: Bool[Tensor, "n mask_h mask_w"] | None = None,
    points: int = 64,
    progress_sampler: ProgressSampler | None = None,
    t_min: float | None = None,
    decoder: Decoder | None = None,
    generator: Generators = None,
) -> Bound:
    """The continuous-time bound: an unbiased estimate from `points` evaluations per image, stratified along the path.

    Args:
        denoiser: a trained denoiser or an exact oracle.
        x: the images, with values as the decoder expects them.
        path: the path family; a random one gives the bound of the mixture over its curves. Synchronous by default. It
            is taken at its word: `paths.check_path` finds slopes that are wrong, with which nothing is bounded.
        label: class per image.
        known: True = known, (b, h, w): bounds -log p(unknown | known). A patch is known where all its pixels are; those
            known inside other patches are counted as unknown, since the network cannot be told apart from its patch.
        points: evaluations per image, one in each of as many equal shares of u, which `progress_sampler` maps to s.
        spacing: where on the path to look; `FluxProgress`, importance sampling of s, by default.
        t_min: floor of a path that has none; by default the level at which sigma / alpha is `decoder.finest`. Every
            floor gives a bound, a lower one is not always a tighter one.
        decoder: `CategoricalDecoder(256)` by default: bits/dim of 8-bit pixels.
        generator: one for all, or one per image. Started anew at the same seeds the noise is the same for every path,
            so that paths compare pairwise.
    """
    at_least("points", points, 1, "64 is usual")
    decoder = decoder or CategoricalDecoder()
    floor = finest_level(denoiser.process, decoder) if t_min is None else t_min
    walk = _Walk(denoiser, x, path, known, progress_sampler or FluxProgress(process=denoiser.process), floor, generator)
    return walk.bound(walk.integrand(label, points), decoder, points)


@torch.no_grad()
def discrete_bound(
    denoiser: DenoiserLike,
    x: Image,
    path: Path | None = None,
    *,
    label: Labels | None = None,
    known: Bool[Tensor, "n mask_h mask_w"] | None = None,
    steps: int = 250,
    progress_sampler: ProgressSampler | None = None,
    t_min: float | None = None,
    decoder: Decoder | None = None,
    generator: Generators = None,
) -> Bound:
    """The bound of the ancestral sampler (`DDIM(1.0)`) that takes `steps` steps, all of them summed.

    The k-th term is 1/2 sum_i [SNR(t_i(s_{k-1})) - SNR(t_i(s_k))] ||x_i - x_hat_i||^2 at s_k (VDM, eq. 13, per patch).
    It exceeds `bound` by a gap that falls as 1/steps. `progress_sampler` places the steps: `UniformProgress` by default, as
    samplers do; `FluxProgress` comes to a tighter bound with the same number. Other arguments as for `bound`.
    """
    at_least("steps", steps, 1, "250 is the paper's")
    decoder = decoder or CategoricalDecoder()
    floor = finest_level(denoiser.process, decoder) if t_min is None else t_min
    walk = _Walk(denoiser, x, path, known, progress_sampler or UniformProgress(), floor, generator)
    return walk.bound(walk.terms(label, steps), decoder, None)


def finest_level(process: Process, decoder: Decoder) -> float:
    """The level at which sigma / alpha is `decoder.finest`."""
    return process.level(torch.tensor(-2 * math.log(decoder.finest), dtype=torch.float64)).item()


def floored(path: Path, t_min: float) -> Path:
    """`path`, lifted to `t_min` unless it has a floor of its own."""
    if isinstance(path, Conditioned):
        raise ValueError("path must not be Conditioned here, got a path that holds patches: give the mask as known")
    return path if path.t_min > 0 else Floored(path, t_min)


Terms = Iterator[tuple[LevelMap, LevelMap]]  # level maps, and the nats of every patch that belong to them


class _Walk:
    """Images on their curves, with all randomness set out."""

    def __init__(
        self,
        denoiser: DenoiserLike,
        x: Image,
        path: Path | None,
        known: Tensor | None,
        progress_sampler: ProgressSampler,
        t_min: float,
        generator: Generators,
    ):
        # Half precision is not enough for levels near the floor; networks cast for themselves.
        self.dtype = torch.promote_types(x.dtype, torch.float32)
        self.denoiser, self.process, self.x, self.progress_sampler = (
            denoiser,
            denoiser.process,
            x.to(self.dtype),
            progress_sampler,
        )
        self.size = (x.shape[2], x.shape[3])
        self.grid = denoiser.grid(self.size)
        self.generator = generator
        family = floored(path or Synchronous(), t_min)
        self.known = self._known(known)
        if self.known is not None:
            family = Conditioned(family, self.known)
        # The curve's randomness is its own: the noise does not depend on how much of it a path needs.
        self.curve: Curve = family.draw(
            len(x), self.grid, generator=forked(generator), device=x.device, dtype=self.dtype
        )

    def integrand(self, label: Labels | None, points: int) -> Terms:
        """The integrand divided by the density of its points."""
        weight = ELBO()
        for k in range(points):
            u = uniform((len(self.x),), generator=self.generator, device=self.x.device, dtype=self.dtype)
            s, density = self.progress_sampler(self.curve, (u + k) / points)
            t, slope = self.curve(s)
            error = self._error(t, label, lambda prediction: prediction.v, self.process.velocity)
            importance = density.reciprocal().nan_to_num(posinf=0) / points
            yield t, importance[:, None, None] * weight(self.process, t, slope) * error

    def terms(self, label: Labels | None, steps: int) -> Terms:
        """The steps' terms, from the clean end."""
        before = self._at(0.0)
        for k in range(1, steps + 1):
            t = self._at(k / steps)
            error = self._error(t, label, lambda prediction: prediction.x, lambda x, eps, t: x)
            moved = t > before
            gain = self.process.snr(before.masked_fill(~moved, 1)) - self.process.snr(t)
            yield t, 0.5 * gain.masked_fill(~moved, 0) * error
            before = t

    def bound(self, terms: Terms, decoder: Decoder, points: int | None) -> Bound:
        """The sum of the terms, with what lies at the ends of the path."""
        reconstruction, prior = self._reconstruction(decoder), self._prior()
        diffusion = torch.zeros_like(prior)
        by_level = prior.new_zeros(len(prior), len(LEVEL_EDGES))
        squares = prior.new_zeros(len(prior))
        edges = torch.tensor(LEVEL_EDGES, device=prior.device, dtype=prior.dtype)
        for t, nats in terms:
            diffusion += nats
            squares += nats.sum((1, 2)).square()
            level = torch.bucketize(t, edges).clamp(max=len(edges) - 1)
            by_level.scatter_add_(1, level.flatten(1), nats.flatten(1))
        whole = diffusion.sum((1, 2))
        noise = torch.full_like(whole, math.nan)  # one point tells nothing of its spread
        if points is not None and points > 1:
            noise = ((points * squares - whole.square()).clamp(min=0) / (points - 1)).sqrt()
        return Bound(
            prior=prior.sum((1, 2)),
            diffusion=whole,
            reconstruction=reconstruction.sum((1, 2)),
            noise=noise,
            dims=self._masked(torch.ones_like(self.x)).sum((1, 2)),
            per_patch=prior + diffusion + reconstruction,
            by_level=by_level,
            decoder=decoder,
        )

    def _known(self, known: Tensor | None) -> KnownPatches | None:
        if known is None:
            return None
        if tuple(known.shape) != (len(self.x), *self.size):
            raise ValueError(
                f"known must have shape {(len(self.x), *self.size)}, True = known, got {tuple(known.shape)}: "
                "expand one mask to the batch"
            )
        return known_patches(known.to(self.x.device), self.grid)

    def _at(self, u: float) -> LevelMap:
        ends = {0.0: self.x.new_zeros(len(self.x)), 1.0: self.x.new_ones(len(self.x))}
        if u in ends:  # the ends of the path, exactly
            return self.curve(ends[u].to(self.dtype))[0]
        s, _ = self.progress_sampler(self.curve, torch.full((len(self.x),), u, device=self.x.device, dtype=self.dtype))
        return self.curve(s)[0]

    def _noised(self, t: LevelMap) -> tuple[Image, Image]:
        eps = normal(self.x.shape, generator=self.generator, device=self.x.device, dtype=self.x.dtype)
        return eps, self.process.noised(self.x, eps, t.to(self.x.dtype))

    def _error(
        self, t: LevelMap, label: Labels | None, believed: Callable, true: Callable[[Image, Image, LevelMap], Image]
    ) -> LevelMap:
        """Squared error per patch of what the denoiser believes at fresh noise."""
        eps, x_t = self._noised(t)
        t = t.to(self.x.dtype)
        residual = true(self.x, eps, t) - believed(self.denoiser(x_t, t, label))
        return sum_per_patch(residual.square(), self.grid).to(self.dtype)

    def _reconstruction(self, decoder: Decoder) -> LevelMap:
        t = self._at(0.0)
        t = t if self.known is None else t.masked_fill(self.known, 1)  # any level above 0: it is masked below
        _, x_t = self._noised(t)
        x, x_t = self.x.to(self.dtype), x_t.to(self.dtype)
        return self._masked(decoder(self.process, x, x_t, t))

    def _prior(self) -> LevelMap:
        t = self._at(1.0)
        t = t if self.known is None else t.masked_fill(self.known, 1)
        alpha, sigma = to_pixels(self.process.alpha(t), self.size), to_pixels(self.process.sigma(t), self.size)
        kl = 0.5 * ((alpha * self.x).square() + sigma.square() - 1) - sigma.log()
        return self._masked(kl.to(self.dtype))

    def _masked(self, per_pixel: Image) -> LevelMap:
        total = sum_per_patch(per_pixel.to(self.dtype), self.grid)
        return total if self.known is None else total.masked_fill(self.known, 0)
