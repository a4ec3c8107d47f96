"""Upper bound on -log p(x) along any noise path (negative ELBO), split into terms, patches and noise levels.

For every path drawn independently of x, with x_t the image noised to the level map t(s),

    -log p(x) <= KL(q(x_1 | x) || N(0, I)) + E int_0^1 1/2 sum_i (-dSNR/dt)(t_i) dt_i/ds ||x_i - x_hat_i||^2 ds
                 - E log p(x | x_0),

with equality for a perfect denoiser, on every path: differences between paths measure how inconsistent a network is.
AsyncPatch Diffusion (arXiv:2606.07079) proves a bound for levels that differ between patches; the line integral is that
of VDM (arXiv:2107.00630) and MuLAN (arXiv:2312.13236) along curves of level maps. On a path with known patches at t = 0
it bounds -log p(unknown | known).
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
from asyncdiff.devices import to_device
from asyncdiff.noise.curves import Curve
from asyncdiff.noise.paths import Conditioned, Floored, Path, Synchronous
from asyncdiff.noise.processes import Process
from asyncdiff.noise.progress_samplers import FluxProgress, ProgressSampler, UniformProgress
from asyncdiff.randomness import Generators, fork, normal, uniform
from asyncdiff.shapes import (
    Image,
    IndexedLevels,
    KnownPatches,
    Labels,
    LevelMap,
    Levels,
    indexed,
    known_patches,
    sum_per_patch,
    to_pixels,
)

# Upper edges of the bins of `by_level`, finer towards t = 0, where the integrand grows as 1/t.
LEVEL_EDGES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


class Decoder(ABC):
    """Reconstruction term -log p(x | x_t) of every pixel at the lowest level of a path.

    Attributes:
        unit: unit of `Bound.rate`.
        nats: number of nats in one `unit`.
        noise_to_signal: default sigma / alpha at the lowest level of a path; the decoder accounts for finer details.
    """

    unit: str
    nats: float
    noise_to_signal: float

    @abstractmethod
    def __call__(self, process: Process, x: Image, x_t: Image, t: LevelMap) -> Image:
        """Return -log p(x | x_t) of every pixel in nats, for `x_t` at the level map `t`, which must be above 0."""

    def check(self, x: Image) -> None:  # noqa: B027  densities accept all values
        """Raise ValueError for images to which the decoder assigns no probability."""


class CategoricalDecoder(Decoder):
    """Decoder of pixels with discrete values, such as 8-bit images; bounds are in bits per dimension.

    p(x | x_t) is the categorical distribution with logits -(x_t - alpha v_j)^2 / (2 sigma^2) over the equidistant
    values v_j from -1 to 1 (VDM, section 3.3).

    Args:
        values: number of values that a pixel can take, at least 2; 256 for 8 bits.
    """

    unit = "bits/dim"
    nats = math.log(2)

    def __init__(self, values: int = 256):
        at_least("values", values, 2, "use 256 for 8-bit images, 65536 for 16 bits", 2**16)
        self.values = values
        # A quarter of the distance between values, logSNR 12.5 for 8 bits (VDM ends at 13.3). Below it, halving the
        # noise costs log 2 if left to a network that does not know that values are discrete, but almost nothing in the
        # decoder.
        self.noise_to_signal = 0.25 * 2 / (values - 1)

    def __call__(self, process: Process, x: Image, x_t: Image, t: LevelMap) -> Image:
        self.check(x)
        step = 2 / (self.values - 1)
        size = (x.shape[2], x.shape[3])
        alpha, sigma = to_pixels(process.alpha(t), size), to_pixels(process.sigma(t), size)

        def logit(value: Tensor | float) -> Tensor:
            return -((x_t - alpha * value) / sigma).square() / 2

        # Loop over the values: all at once would take 256 times the memory of the images.
        total = torch.full_like(x_t, -math.inf)
        for j in range(self.values):
            total = torch.logaddexp(total, logit(-1 + j * step))
        return total - logit(-1 + ((x + 1) / step).round() * step)

    def check(self, x: Image) -> None:
        """Raise ValueError for pixels between the values or outside [-1, 1]."""
        index = (x + 1) * ((self.values - 1) / 2)
        off = (index - index.round().clamp(0, self.values - 1)).abs().amax() if x.numel() else torch.zeros(())
        if not off < 0.1:  # steps; float16 rounds 256 values by 0.03; also rejects NaN
            raise ValueError(
                f"pixels must take {self.values} equidistant values from -1 to 1, got one {float(off):.2f} steps off: "
                "set values of CategoricalDecoder to the data's number, or use GaussianDecoder for continuous values"
            )


class GaussianDecoder(Decoder):
    """Decoder of continuous values, such as latents: -log N(x; x_t / alpha, sigma^2 / alpha^2).

    Its expectation over x_t is used, 1/2 log(2 pi e / SNR), which does not depend on x. Bounds are in nats per
    dimension of a density: never report them as bits per pixel.
    """

    unit = "nats/dim"
    nats = 1.0
    noise_to_signal = 1e-3

    def __call__(self, process: Process, x: Image, x_t: Image, t: LevelMap) -> Image:
        nats = 0.5 * (math.log(2 * math.pi * math.e) - process.logsnr(t))
        return to_pixels(nats, (x.shape[2], x.shape[3])).expand_as(x)


@dataclass(frozen=True)
class Bound:
    """Upper bound on -log p of every image, in nats summed over its unknown patches.

    Attributes:
        prior: KL divergence of x_t at s = 1 from N(0, I); 0 if alpha(1) = 0.
        diffusion: the integral over the path, or the sum over steps.
        reconstruction: the decoder's term; negative for densities on scales finer than 1.
        standard_error: standard error of `diffusion`, computed as if its points were independent (with stratified
            points the true error is smaller); NaN for a single point and for `discrete_bound`.
        dims: number of unknown values.
        per_patch: sum of all three terms by patch; 0 for known patches.
        by_level: `diffusion` by the level t of the patch it came from, in bins with upper edges `LEVEL_EDGES`.
        decoder: decoder of the reconstruction term, which defines the unit of `rate`.
    """

    prior: Float[Tensor, " b"]
    diffusion: Float[Tensor, " b"]
    reconstruction: Float[Tensor, " b"]
    standard_error: Float[Tensor, " b"]
    dims: Float[Tensor, " b"]
    per_patch: LevelMap
    by_level: Float[Tensor, "b bins"]
    decoder: Decoder

    @property
    def total(self) -> Float[Tensor, " b"]:
        """Bound in nats."""
        return self.prior + self.diffusion + self.reconstruction

    @property
    def rate(self) -> Float[Tensor, " b"]:
        """Bound per unknown dimension, in `decoder.unit`; 0 for an image without unknown patches."""
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
    """Estimate the continuous-time bound on -log p(x), without bias, from `points` network evaluations per image.

    Args:
        denoiser: trained denoiser or exact oracle.
        x: images, with values that the decoder accepts.
        path: path family; a random one gives a bound for the mixture over its curves; default: synchronous. Its slopes
            must be correct for the result to be a bound: check your own path classes with `paths.check_path`.
        label: class labels; None for the unconditional bound.
        known: known pixels, True = known, (b, h, w): bounds -log p(unknown | known). A patch is known if all its pixels
            are; known pixels of other patches count as unknown, since a patch has only one level.
        points: number of evaluations per image, stratified: one in each of `points` equal intervals of u, which
            `progress_sampler` maps to s.
        progress_sampler: distribution of s; default: `FluxProgress`, importance sampling.
        t_min: floor for a path that has none; default: level at which sigma / alpha is `decoder.noise_to_signal`. Every
            floor gives a bound; a lower one is not always tighter.
        decoder: decoder of the reconstruction term; default: `CategoricalDecoder(256)`, bits/dim of 8-bit pixels.
        generator: one generator for the batch, or one per image; None for torch's global one. With equal seeds the
            noise is the same for every path, so that paths can be compared pairwise.

    Returns:
        The bound of every image and its parts; `rate` is in bits/dim or nats/dim.

    Examples:
        >>> from asyncdiff.denoising import GaussianOracle, random_gaussian
        >>> from asyncdiff.noise import AsyncPatch
        >>> from asyncdiff.randomness import seeded
        >>> oracle = GaussianOracle(*random_gaussian(16), patches=(2, 2))  # a perfect denoiser
        >>> x = oracle.sample(2, (1, 4, 4), seeded(0))
        >>> estimate = bound(oracle, x, AsyncPatch(), points=64, decoder=GaussianDecoder(), generator=seeded(1))
        >>> bool(((estimate.total + oracle.log_prob(x)).abs() < 4 * estimate.standard_error).all())
        True
    """
    at_least("points", points, 1, "use 64, for example")
    progress_sampler = progress_sampler or FluxProgress(process=denoiser.process)
    line = _LineIntegral(denoiser, x, path, known, progress_sampler, t_min, decoder, generator)
    return line.bound(line.integrand(label, points), points)


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
    """Return the bound on -log p(x) of the ancestral sampler (`DDIM(1.0)`) with `steps` steps, summed over all steps.

    The k-th term is 1/2 sum_i [SNR(t_i(s_{k-1})) - SNR(t_i(s_k))] ||x_i - x_hat_i||^2 at s_k (VDM, eq. 13, per patch).
    It exceeds `bound` by a gap that falls as 1/steps.

    Args:
        denoiser: trained denoiser or exact oracle.
        x: images, with values that the decoder accepts.
        path: path family, as for `bound`; default: synchronous.
        label: class labels; None for the unconditional bound.
        known: known pixels, True = known, (b, h, w), as for `bound`.
        steps: number of sampling steps, one network evaluation each.
        progress_sampler: spacing of the steps; default: `UniformProgress`, as in samplers. `FluxProgress` gives a
            tighter bound with the same number of steps.
        t_min: floor for a path that has none, as for `bound`.
        decoder: decoder of the reconstruction term; default: `CategoricalDecoder(256)`, bits/dim of 8-bit pixels.
        generator: one generator for the batch, or one per image; None for torch's global one.

    Returns:
        The bound of every image and its parts, with a `standard_error` of NaN.
    """
    at_least("steps", steps, 1, "use 250 as in the paper")
    line = _LineIntegral(denoiser, x, path, known, progress_sampler or UniformProgress(), t_min, decoder, generator)
    return line.bound(line.terms(label, steps), None)


def default_t_min(process: Process, decoder: Decoder) -> float:
    """Return the default floor of `bound`: the level at which sigma / alpha is `decoder.noise_to_signal`."""
    return process.level(torch.tensor(-2 * math.log(decoder.noise_to_signal), dtype=torch.float64)).item()


def with_floor(path: Path, t_min: float) -> Path:
    """Return `path` with the floor `t_min`, or unchanged if it has a floor already."""
    if isinstance(path, Conditioned):
        raise ValueError("path must not be Conditioned, got a path with known patches: pass its mask as known instead")
    return path if path.t_min > 0 else Floored(path, t_min)


Terms = Iterator[tuple[LevelMap, LevelMap]]  # level maps, and the nats of every patch at these levels


class _LineIntegral:
    """Bound of a batch of images along random curves, one per image."""

    def __init__(
        self,
        denoiser: DenoiserLike,
        x: Image,
        path: Path | None,
        known: Tensor | None,
        progress_sampler: ProgressSampler,
        t_min: float | None,
        decoder: Decoder | None,
        generator: Generators,
    ):
        # Half precision cannot represent levels near the floor; networks cast their inputs themselves.
        self.dtype = torch.promote_types(x.dtype, torch.float32)
        self.x = x.to(self.dtype)
        self.denoiser, self.process, self.progress_sampler = denoiser, denoiser.process, progress_sampler
        self.decoder = decoder or CategoricalDecoder()
        self.size = (x.shape[2], x.shape[3])
        self.grid = denoiser.grid(self.size)
        self.generator = generator
        # Level maps are computed where their random numbers are drawn, on the host if it has the generators. A GPU then
        # gets maps with their distinct levels, and the host does not wait for it.
        gpu_generator = isinstance(generator, torch.Generator) and generator.device.type != "cpu"
        self.levels_device = x.device if gpu_generator else torch.device("cpu")
        floor = default_t_min(self.process, self.decoder) if t_min is None else t_min
        path = with_floor(path or Synchronous(), floor)
        self.known: KnownPatches | None = None
        if known is not None:
            patches = self._known_patches(known)
            self.known, path = to_device(patches, x.device), Conditioned(path, patches)
        # Curves have separate generators, so that the noise is the same for every path.
        self.curve: Curve = path.draw(
            len(x), self.grid, generator=fork(generator), device=self.levels_device, dtype=self.dtype
        )

    def integrand(self, label: Labels | None, points: int) -> Terms:
        """Yield the integrand at random points, divided by their density and number."""
        weight = ELBO()
        for k in range(points):
            u = uniform((len(self.x),), generator=self.generator, device=self.levels_device, dtype=self.dtype)
            s, density = self.progress_sampler(self.curve, (u + k) / points)
            t, slope = self.curve(s)
            importance = density.reciprocal().nan_to_num(posinf=0) / points
            factor = importance[:, None, None] * weight(self.process, t, slope)
            error = self._error(t, label, lambda prediction: prediction.v, self.process.velocity)
            yield t, to_device(factor, self.x.device) * error

    def terms(self, label: Labels | None, steps: int) -> Terms:
        """Yield the term of every step, starting at the clean end."""
        before = self._level_map_at(0.0)
        for k in range(1, steps + 1):
            t = self._level_map_at(k / steps)
            error = self._error(t, label, lambda prediction: prediction.x, lambda x, eps, t: x)
            moved = t > before
            gain = self.process.snr(before.masked_fill(~moved, 1)) - self.process.snr(t)
            yield t, to_device(0.5 * gain.masked_fill(~moved, 0), self.x.device) * error
            before = t

    def bound(self, terms: Terms, points: int | None) -> Bound:
        """Sum the terms, and add reconstruction and prior at the ends of the path."""
        reconstruction, prior = self._reconstruction(), self._prior()
        diffusion = torch.zeros_like(prior)
        by_level = prior.new_zeros(len(prior), len(LEVEL_EDGES))
        squares = prior.new_zeros(len(prior))
        edges = to_device(torch.tensor(LEVEL_EDGES, device="cpu", dtype=prior.dtype), self.levels_device)
        for t, nats in terms:
            diffusion += nats
            squares += nats.sum((1, 2)).square()
            level = torch.bucketize(t, edges).clamp(max=len(edges) - 1)
            by_level.scatter_add_(1, to_device(level, prior.device).flatten(1), nats.flatten(1))
        total = diffusion.sum((1, 2))
        standard_error = torch.full_like(total, math.nan)  # a single point has no spread
        if points is not None and points > 1:
            standard_error = ((points * squares - total.square()).clamp(min=0) / (points - 1)).sqrt()
        return Bound(
            prior=prior.sum((1, 2)),
            diffusion=total,
            reconstruction=reconstruction.sum((1, 2)),
            standard_error=standard_error,
            dims=self._sum_unknown(torch.ones_like(self.x)).sum((1, 2)),
            per_patch=prior + diffusion + reconstruction,
            by_level=by_level,
            decoder=self.decoder,
        )

    def _known_patches(self, known: Tensor) -> KnownPatches:
        if tuple(known.shape) != (len(self.x), *self.size):
            raise ValueError(
                f"known must have shape {(len(self.x), *self.size)}, True = known, got {tuple(known.shape)}: "
                "expand a single mask to the batch"
            )
        return known_patches(known.to(self.levels_device), self.grid)

    def _level_map_at(self, u: float) -> LevelMap:
        """Return the level map at the share `u` of the progress sampler's distribution; the ends are exact."""
        s = torch.full((len(self.x),), u, device=self.levels_device, dtype=self.dtype)
        return self.curve(s if u in (0, 1) else self.progress_sampler(self.curve, s)[0])[0]

    def _above_0(self, t: LevelMap) -> LevelMap:
        """Return `t` on the images' device, with any level above 0 for known patches, whose values are masked later."""
        t = to_device(t, self.x.device)
        return t if self.known is None else t.masked_fill(self.known, 1)

    def _add_noise(self, t: LevelMap) -> tuple[Image, Image]:
        eps = normal(self.x.shape, generator=self.generator, device=self.x.device, dtype=self.dtype)
        return eps, self.process.noised(self.x, eps, t)

    def _error(
        self, t: LevelMap, label: Labels | None, predicted: Callable, true: Callable[[Image, Image, LevelMap], Image]
    ) -> LevelMap:
        """Return the squared error per patch of the denoiser's prediction, with fresh noise."""
        levels, t = self._with_distinct_levels(t), to_device(t, self.x.device)
        eps, x_t = self._add_noise(t)
        residual = true(self.x, eps, t) - predicted(self.denoiser(x_t, levels, label))
        return sum_per_patch(residual.square(), self.grid).to(self.dtype)

    def _with_distinct_levels(self, t: LevelMap) -> Levels:
        """Return a level map on the device of the images; what a GPU would wait to sort is sorted on the host."""
        if t.device == self.x.device:
            return t
        found = indexed(t)
        return IndexedLevels(to_device(found.values, self.x.device), to_device(found.index, self.x.device))

    def _reconstruction(self) -> LevelMap:
        t = self._above_0(self._level_map_at(0.0))
        return self._sum_unknown(self.decoder(self.process, self.x, self._add_noise(t)[1], t))

    def _prior(self) -> LevelMap:
        t = self._above_0(self._level_map_at(1.0))
        alpha, sigma = to_pixels(self.process.alpha(t), self.size), to_pixels(self.process.sigma(t), self.size)
        return self._sum_unknown(0.5 * ((alpha * self.x).square() + sigma.square() - 1) - sigma.log())

    def _sum_unknown(self, per_pixel: Image) -> LevelMap:
        total = sum_per_patch(per_pixel, self.grid)
        return total if self.known is None else total.masked_fill(self.known, 0)
