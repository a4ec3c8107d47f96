"""Base class of all samplers, and the samplers that follow a noise path from noise (s = 1) to image (s = 0)."""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from asyncdiff.checks import MAX_STEPS, at_least
from asyncdiff.denoising.denoiser import DenoiserLike
from asyncdiff.devices import to_device
from asyncdiff.noise.orders import Order, Raster
from asyncdiff.noise.paths import Conditioned, Ordered, PartiallyNoised, Path, Synchronous
from asyncdiff.randomness import RandomSource, counter_key, normal, per_image
from asyncdiff.sampling.guidance import Guidance, finish
from asyncdiff.sampling.hosted_levels import hosted_in_turn
from asyncdiff.sampling.input_checks import check_inputs, check_label, check_levels
from asyncdiff.sampling.partial_updates import PartialUpdates
from asyncdiff.sampling.solvers import DDIM, Solver, take_step
from asyncdiff.sampling.trajectories import Frame, Start, last
from asyncdiff.shapes import Image, KnownPatches, KnownPixels, Labels, LevelMap, known_patches, to_pixels

# Second counter in the seeds for guidance noise, whose random stream is thus separate from that of the images.
GUIDANCE = 1


class ImageSampler(ABC):
    """Base class of samplers, which turn seeds into images with a denoiser: unconditional, by class, or inpainted.

    Call it for the final images, or iterate over `frames` for the entire trajectory. Subclasses implement `walk`.

    Image i depends only on seed i: its path, its initial noise and all later noise come from its own generator, on the
    CPU, whatever the batch and the device.

    Attributes:
        guidance: guidance rules, applied in this order: the first one wraps the network directly.
        refresh: number of steps between evaluations of all patches; in between, only moving patches are computed. 1
            computes all patches in every step; larger values need a network with a KV cache, such as
            `asyncdiff.networks.DiT`.
        margin: between refreshes, also recompute patches within this many patches of a moving one.
        supports_start_levels: whether the sampler can start from levels between 0 and 1 (SDEdit).

    Example:
        Inpaint the right half of an image:

        >>> from asyncdiff.denoising import Denoiser
        >>> from asyncdiff.networks import DiT
        >>> from asyncdiff.noise import AsyncPatch, RectifiedFlow
        >>> denoiser = Denoiser(DiT(channels=1, patch_size=2, dim=32, depth=1, heads=2), RectifiedFlow())
        >>> image, known = torch.zeros(1, 1, 8, 8), torch.zeros(1, 8, 8, dtype=torch.bool)
        >>> known[:, :, :4] = True
        >>> sampler = Sampler(AsyncPatch(), DDIM(0.25), steps=4)
        >>> result = sampler(denoiser, seeds=[0], shape=(1, 8, 8), image=image, known=known)
        >>> torch.equal(result[..., :4], image[..., :4])
        True
    """

    guidance: Sequence[Guidance] = ()
    refresh: int = 1
    margin: int = 0
    supports_start_levels: bool = False

    def __call__(
        self,
        denoiser: DenoiserLike,
        *,
        seeds: Sequence[int],
        shape: tuple[int, int, int],
        label: Labels | None = None,
        image: Image | None = None,
        known: KnownPixels | None = None,
        levels: LevelMap | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "b c h w"]:
        """Generate one image per seed.

        Args:
            denoiser: trained denoiser or exact oracle; the sampler's guidance wraps it.
            seeds: one seed per image.
            shape: (c, h, w) of every image.
            label: class of every image, int64 (b,); None for unconditional sampling.
            image: images with the known pixels, (b, c, h, w). Unknown pixels are read only in patches whose `levels`
                are below 1.
            known: mask of known pixels, True = known, (b, h, w). A patch is known if all its pixels are; known pixels
                inside other patches are replaced by the noised image after every step.
            levels: initial level map, (b, gh, gw): 0 keeps a patch of the image, 1 is pure noise (default for unknown
                patches); in between, the image is noised to that level (SDEdit, arXiv:2108.01073).
            device: device of the denoiser.
            dtype: floating-point type of the images.

        Returns:
            Images (b, c, h, w) on `device`; where `known` is True they equal `image` bit for bit.
        """
        frames = self.frames(
            denoiser,
            seeds=seeds,
            shape=shape,
            label=label,
            image=image,
            known=known,
            levels=levels,
            device=device,
            dtype=dtype,
        )
        return last(frames).x_t

    def replace(self, **arguments: Any) -> "ImageSampler":
        """Return a copy with some constructor arguments replaced, such as `sampler.replace(steps=20)`.

        Args:
            **arguments: constructor arguments of the class, by name.

        Returns:
            The copy, built and checked by the constructor.

        Raises:
            ValueError: the class has no such argument, or the constructor refuses a value.
        """
        names = list(inspect.signature(type(self)).parameters)
        for name in arguments:
            if name not in names:
                raise ValueError(
                    f"{name} does not apply to {type(self).__name__}, whose arguments are {', '.join(names)}: omit it"
                )
        kept = [name for name in names if name not in arguments]
        if missing := [name for name in kept if not hasattr(self, name)]:
            raise ValueError(
                f"{type(self).__name__} must store its constructor argument {missing[0]} as an attribute of that name, "
                "to be copied: set it in the constructor"
            )
        return type(self)(**{name: getattr(self, name) for name in kept}, **arguments)

    @torch.no_grad()
    def frames(
        self,
        denoiser: DenoiserLike,
        *,
        seeds: Sequence[int],
        shape: tuple[int, int, int],
        label: Labels | None = None,
        image: Image | None = None,
        known: KnownPixels | None = None,
        levels: LevelMap | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Iterator[Frame]:
        """Yield the states of the trajectory from pure noise to the result; the arguments are those of `__call__`.

        In the last state, known pixels equal those of `image` bit for bit. Errors that a GPU finds, such as predictions
        that are not finite, are raised a few states later than on a CPU, at the latest before the last state.
        """
        check_inputs(seeds, shape, label, image, known)
        check_label(denoiser, label)
        device = torch.device(device)
        generators = per_image(seeds)
        grid = denoiser.grid((shape[1], shape[2]))
        # Drawn before anything else, so that known pixels never change an image's noise.
        eps = normal((len(seeds), *shape), generator=generators, device=device, dtype=dtype)
        level_dtype = torch.promote_types(dtype, torch.float32)  # half precision would round small steps away
        source = RandomSource(len(seeds), grid, generators, device, level_dtype)
        start = self._start(denoiser, source, eps, image, known, levels)
        guidance_source = replace(source, generator=per_image(counter_key(int(seed), GUIDANCE) for seed in seeds))
        guided = start.partial_updates or denoiser
        for guidance in self.guidance:
            guided = guidance.begin(guided, guidance_source, shape)
        label = None if label is None else to_device(label, device)
        s = 1.0
        for frame in self.walk(replace(start, denoiser=guided, label=label)):
            s = frame.s
            if s <= 0:
                finish(guided)
                frame = start.finished(frame)
            yield frame
        if s > 0:
            raise ValueError(f"{type(self).__name__}.walk must end at s = 0, got {s:g}: yield the finished images last")

    def _start(
        self,
        denoiser: DenoiserLike,
        source: RandomSource,
        eps: Image,
        image: Image | None,
        known: KnownPixels | None,
        levels: LevelMap | None,
    ) -> Start:
        """Return the inputs of the walk, without guidance and labels; masks and level maps are read on the host."""
        size, device = (eps.shape[2], eps.shape[3]), eps.device
        fixed: KnownPatches = torch.zeros((source.batch, *source.grid), dtype=torch.bool, device="cpu")
        x_t = eps
        if image is not None and known is not None:
            known = known.cpu()
            fixed = known_patches(known, source.grid)
            image = to_device(image.to(eps.dtype), device)
        if levels is not None:
            levels = levels.cpu()
            self._check_levels(levels, (source.batch, *source.grid))
            if image is None:
                raise ValueError(
                    "levels needs image and known, got levels alone: pass the image to start from and its mask"
                )
            levels = levels.masked_fill(fixed, 0)
            fixed = levels == 0
            noised = denoiser.process.noised(image, eps, to_device(levels.to(eps.dtype), device))
            x_t = torch.where(to_device(to_pixels(levels == 1, size), device), eps, noised)
        cut = None if known is None else known[:, None] & ~to_pixels(fixed, size)
        fixed_there = to_device(fixed, device)
        if image is not None:
            x_t = torch.where(to_pixels(fixed_there, size), image, x_t)
        return Start(
            denoiser,
            x_t,
            eps,
            fixed_there,
            fixed,
            None,
            source,
            image,
            None if known is None else to_device(known, device),
            PartialUpdates(denoiser, self.refresh, self.margin) if self.refresh > 1 else None,
            to_device(cut, device) if cut is not None and cut.any() else None,
            levels,
        )

    def _check_levels(self, levels: LevelMap, shape: tuple[int, int, int]) -> None:
        if not self.supports_start_levels:
            raise ValueError(
                f"{type(self).__name__} always starts from pure noise, got levels: omit levels, or use Sampler"
            )
        check_levels(levels, shape)

    @abstractmethod
    def walk(self, start: Start) -> Iterator[Frame]:
        """Yield the states of the trajectory from `start` to the result, whose patches are all at level 0."""


class Sampler(ImageSampler):
    """Sampler that follows a noise path from s = 1 (noise) to s = 0 (image), on a uniform grid of progress s.

    Step k takes the level map from t(s_k) to t(s_k+1) with s_k = 1 - k / steps; the path defines t(s), the solver takes
    the step. With `Synchronous()` this is ordinary diffusion sampling; with an image and a mask the known patches stay
    at level 0 and the path runs over the unknown ones (inpainting).

    Args:
        path: family of noise paths; `Synchronous()` by default.
        solver: solver that takes each step; `DDIM()` by default.
        steps: number of sampling steps, each of `solver.evaluations` network evaluations. Steps in which no patch of
            the batch moves cost nothing.
        guidance: guidance rules, applied in this order.
        refresh: number of steps between evaluations of all patches, for networks with a KV cache; 1 computes all
            patches in every step and is exact.
        margin: between refreshes, also recompute patches within this many patches of a moving one.

    Example:
        >>> from asyncdiff.denoising import Denoiser
        >>> from asyncdiff.networks import DiT
        >>> from asyncdiff.noise import RectifiedFlow
        >>> denoiser = Denoiser(DiT(channels=1, patch_size=2, dim=32, depth=1, heads=2), RectifiedFlow())
        >>> sampler = Sampler(solver=DDIM(), steps=4)
        >>> sampler(denoiser, seeds=[0, 1], shape=(1, 8, 8)).shape
        torch.Size([2, 1, 8, 8])
    """

    supports_start_levels = True

    def __init__(
        self,
        path: Path | None = None,
        solver: Solver | None = None,
        steps: int = 50,
        guidance: Sequence[Guidance] = (),
        refresh: int = 1,
        margin: int = 0,
    ):
        at_least("steps", steps, 1, "use 50, for example", MAX_STEPS)
        check_partial_updates(refresh, margin)
        if steps != int(steps):
            raise ValueError(f"steps must be an integer, got {steps}: use 50, for example")
        self.path = path or Synchronous()
        if self.path.t_min > 0:
            raise ValueError(
                f"path must end at the clean image, got a path with the floor {self.path.t_min}: "
                "remove Floored, which is meant for training and likelihoods"
            )
        self.solver = solver or DDIM()
        self.steps = steps
        self.guidance = list(guidance)
        self.refresh = refresh
        self.margin = margin

    def walk(self, start: Start) -> Iterator[Frame]:
        solver, x_t = self.solver.begin(), start.x_t
        progress = torch.linspace(1, 0, self.num_steps(start.source.grid) + 1, dtype=torch.float64, device="cpu")
        maps = hosted_in_turn(self._level_maps(start, progress.tolist()), start.device)
        t = next(maps)
        yield Frame(x_t, t.levels, 1.0)
        for s, to in zip(progress[1:].tolist(), maps, strict=True):
            noise = start.noise() if solver.stochastic else None
            if start.moves(t, to):
                moved = take_step(solver, start.evaluate, x_t, t, to, noise)
                x_t = start.with_known_pixels(moved.to(x_t.dtype), to.levels)
            else:  # drop the history, as in a batch whose other images move: results must not depend on the batch
                solver = self.solver.begin()
            t = to
            yield Frame(x_t, t.levels, s)

    def _level_maps(self, start: Start, progress: Sequence[float]) -> Iterator[LevelMap]:
        """Yield the level map of the walk at every progress, on the CPU."""
        path = Conditioned(self.path, start.host_known_patches) if start.known is not None else self.path
        if start.host_levels is not None:
            path = PartiallyNoised(path, start.host_levels)
        source = start.host_source
        curve = path.curve(source)
        return (curve(torch.full((source.batch,), s, dtype=source.dtype, device="cpu"))[0] for s in progress)

    def num_steps(self, grid: tuple[int, int]) -> int:
        """Return the number of sampling steps for level maps of (gh, gw)."""
        return self.steps


class Autoregressive(Sampler):
    """Autoregressive sampler: generates patch after patch, each in `steps_per_patch` steps.

    With an overlap, the next group of patches starts before the current one is done. The number of steps follows from
    the grid: K groups take steps_per_patch (1 + (K - 1)(1 - overlap)) steps, rounded up. AsyncPatch Diffusion generates
    64 patches in 16 steps each, 1024 evaluations (arXiv:2606.07079). With `refresh` above 1 only moving patches are
    computed, which makes strict orders affordable.

    Args:
        order: order in which patches are generated; `Raster()` by default.
        overlap: share of a group's time during which the next group moves too; in [0, 1). 0 is strict order.
        solver: solver that takes each step; `DDIM()` by default.
        steps_per_patch: number of steps that each patch takes from noise to clean.
        guidance: guidance rules, applied in this order.
        refresh: number of steps between evaluations of all patches, for networks with a KV cache; 1 computes all
            patches in every step and is exact.
        margin: between refreshes, also recompute patches within this many patches of a moving one.

    Example:
        >>> from asyncdiff.denoising import Denoiser
        >>> from asyncdiff.networks import DiT
        >>> from asyncdiff.noise import RectifiedFlow
        >>> denoiser = Denoiser(DiT(channels=1, patch_size=2, dim=32, depth=1, heads=2), RectifiedFlow())
        >>> sampler = Autoregressive(overlap=0.5, steps_per_patch=2, refresh=2)
        >>> sampler.num_steps(grid=(4, 4))
        17
        >>> sampler(denoiser, seeds=[0], shape=(1, 8, 8)).shape
        torch.Size([1, 1, 8, 8])
    """

    def __init__(
        self,
        order: Order | None = None,
        overlap: float = 0.0,
        solver: Solver | None = None,
        steps_per_patch: int = 16,
        guidance: Sequence[Guidance] = (),
        refresh: int = 1,
        margin: int = 0,
    ):
        at_least("steps_per_patch", steps_per_patch, 1, "the paper uses 16", MAX_STEPS)
        self.order = order or Raster()
        self.overlap = overlap
        self.steps_per_patch = steps_per_patch
        super().__init__(Ordered(self.order, overlap), solver, guidance=guidance, refresh=refresh, margin=margin)

    def num_steps(self, grid: tuple[int, int]) -> int:
        duration = 1 + (self.order.groups(grid) - 1) * (1 - self.overlap)
        largest = max(1, int(MAX_STEPS / duration))
        at_least("steps_per_patch", self.steps_per_patch, 1, f"{grid[0]}x{grid[1]} patches take them in turn", largest)
        return math.ceil(round(self.steps_per_patch * duration, 6))


def check_partial_updates(refresh: int, margin: int) -> None:
    """Raise ValueError unless `refresh` and `margin` are in range and compatible."""
    at_least("refresh", refresh, 1, "1 computes all patches in every step")
    at_least("margin", margin, 0, "0 computes only patches that move")
    if margin and refresh == 1:
        raise ValueError(f"margin must be 0 with refresh 1, which computes all patches, got {margin}: increase refresh")
