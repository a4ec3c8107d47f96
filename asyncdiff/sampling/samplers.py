"""From seeds to images: what every sampler shares, and the one that walks a noise path."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from asyncdiff.checks import at_least
from asyncdiff.denoising.denoiser import DenoiserLike, Prediction
from asyncdiff.noise.orders import Order, Raster
from asyncdiff.noise.paths import Conditioned, Ordered, PartiallyNoised, Path, Synchronous
from asyncdiff.randomness import RandomSource, counter_key, normal, per_image
from asyncdiff.sampling.guidance import Guidance, select
from asyncdiff.sampling.partial_updates import PartialUpdates
from asyncdiff.sampling.solvers import DDIM, Solver
from asyncdiff.shapes import Image, KnownPatches, KnownPixels, Labels, LevelMap, known_patches, to_pixels

GUIDANCE = 1  # second counter of the guidance's random streams, so that they leave those of the images alone


@dataclass(frozen=True)
class Frame:
    """One state of the reverse process: the noisy image, its level map, and its progress s from 1 to 0.

    Attributes:
        x_t: the noisy image.
        t: its level map.
        s: its progress, from 1 at noise to 0 at the end.
    """

    x_t: Image
    t: LevelMap
    s: float


@dataclass(frozen=True)
class Start:
    """What a walk starts from, and all that it may ask.

    Attributes:
        denoiser: with its guidance.
        x_t: pure noise, and the image where patches are known; in between where they start from lower levels.
        eps: the noise alone.
        held: True = known, per patch; none without an image.
        label: class per image, None without.
        source: of the walk's path: one generator per image, and a floating type that does not round steps away.
        image: what is known, None without.
        known: True = known, per pixel; None without.
        skipping: the cache of a network that computes moving patches only, None where all are computed.
        levels: that patches start from, None where those that are not known start as pure noise.
    """

    denoiser: DenoiserLike
    x_t: Image
    eps: Image
    held: KnownPatches
    label: Labels | None
    source: RandomSource
    image: Image | None = None
    known: KnownPixels | None = None
    partial_updates: PartialUpdates | None = None
    levels: LevelMap | None = None

    def evaluate(self, x_t: Image, t: LevelMap) -> Prediction:
        """The prediction for these images, told their labels."""
        return self.denoiser(x_t, t, self.label)

    def moving(self, patches: KnownPatches) -> None:
        """Say whose predictions the next evaluations are wanted for; those of others may be old ones."""
        if self.partial_updates is not None:
            self.partial_updates.moving = patches

    def with_known_pixels(self, x_t: Image, t: LevelMap) -> Image:
        """`x_t` where pixels that are known inside unknown patches are the image's, noised to the level of their patch.

        What these pixels say reaches the network so, at no cost; Song et al., arXiv:2011.13456, complete images by such
        replacement alone. Their noise is that of the start, on the way that the unguided flow would take to them.
        """
        if self.image is None or self.known is None:
            return x_t
        size = (x_t.shape[2], x_t.shape[3])
        loose = self.known[:, None] & ~to_pixels(self.held, size)
        if not loose.any():
            return x_t
        return torch.where(loose, self.denoiser.process.noised(self.image, self.eps, t.to(x_t.dtype)), x_t)

    def noise(self) -> Image:
        """Fresh standard normal noise, image i's from its own generator."""
        return normal(self.x_t.shape, generator=self.source.generator, device=self.x_t.device, dtype=self.x_t.dtype)

    def select(self, rows: Int64[Tensor, " n"]) -> "Start":
        """The same for some of the images."""
        generators = self.source.generator
        assert isinstance(generators, list)
        denoiser = select(self.denoiser, rows)
        return replace(
            self,
            denoiser=denoiser,
            x_t=self.x_t[rows],
            eps=self.eps[rows],
            held=self.held[rows],
            label=None if self.label is None else self.label[rows],
            source=replace(self.source, batch=len(rows), generator=[generators[i] for i in rows.tolist()]),
            image=None if self.image is None else self.image[rows],
            known=None if self.known is None else self.known[rows],
            levels=None if self.levels is None else self.levels[rows],
        )


class ImageSampler(ABC):
    """A rule that turns seeds into images with a denoiser. Subclasses implement `walk`.

    Image i depends on seed i only: its path, its first noise and every later noise come from its own generator, on the
    CPU, whatever the batch or the device.

    Attributes:
        guidance: applied in this order, the first one next to the network.
        refresh: evaluations between those that compute all patches; in between a network that can computes only the
            patches that move. 1 computes all every time.
        margin: patches around moving ones, in every direction, that are then computed with them.
        enters: whether it can start from levels between the image and pure noise.
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
        """One image of `shape` (c, h, w) per seed; where `known` is True it is `image`, bit for bit.

        Args:
            denoiser: a trained denoiser, a guided one or an exact oracle.
            seeds: one per image.
            shape: (c, h, w) of every image.
            label: class per image, None without.
            image: what is known, (b, c, h, w); its unknown pixels are read where `levels` says so, never else.
            known: True = known, (b, h, w). A patch counts as known where all its pixels are; pixels known inside other
                patches are replaced by what is known of them after every step.
            levels: that patches start from, (b, gh, gw): 0 keeps a patch of the image, 1 is pure noise, which unknown
                patches start as by default; in between the image is noised to the level.
            device: where the denoiser is.
            dtype: floating type of the images.
        """
        frame = None
        for frame in self.frames(  # noqa: B007  the last one is wanted
            denoiser,
            seeds=seeds,
            shape=shape,
            label=label,
            image=image,
            known=known,
            levels=levels,
            device=device,
            dtype=dtype,
        ):
            pass
        assert frame is not None, "a walk has at least one frame"
        if image is None or known is None:
            return frame.x_t
        return torch.where(known[:, None].to(device), image.to(device, dtype), frame.x_t)

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
        """The states from pure noise to the result, as `__call__` walks them."""
        _check(seeds, shape, label, image, known)
        _check_label(denoiser, label)
        label = None if label is None else label.to(device)
        generators = per_image(seeds)
        grid = denoiser.grid((shape[1], shape[2]))
        # Drawn before anything else, in a fixed order: what is known never changes an image's noise.
        x_t = eps = normal((len(seeds), *shape), generator=generators, device=device, dtype=dtype)
        held = torch.zeros((len(seeds), *grid), dtype=torch.bool, device=device)
        if image is not None and known is not None:
            image, known = image.to(device, dtype), known.to(device)
            held = known_patches(known, grid)
        if levels is not None:
            self._check_levels(levels, image, (len(seeds), *grid))
            assert image is not None, "checked"
            levels = levels.to(device).masked_fill(held, 0)
            held = levels == 0
            noised = denoiser.process.noised(image, eps, levels.to(dtype))
            x_t = torch.where(to_pixels(levels == 1, (shape[1], shape[2])), eps, noised)
        if image is not None:
            x_t = torch.where(to_pixels(held, (shape[1], shape[2])), image, x_t)
        exact = torch.promote_types(dtype, torch.float32)  # half precision would round the steps of a path away
        source = RandomSource(len(seeds), grid, generators, device, exact)
        partial_updates = PartialUpdates(denoiser, self.refresh, self.margin) if self.refresh > 1 else None
        own = replace(source, generator=per_image(counter_key(int(seed), GUIDANCE) for seed in seeds))
        guided = partial_updates or denoiser
        for guidance in self.guidance:
            guided = guidance.begin(guided, own, shape)
        yield from self.walk(Start(guided, x_t, eps, held, label, source, image, known, partial_updates, levels))

    def _check_levels(self, levels: LevelMap, image: Image | None, shape: tuple[int, int, int]) -> None:
        if not self.supports_start_levels:
            raise ValueError(
                f"levels must be left out for {type(self).__name__}, which starts from pure noise: use Sampler"
            )
        if image is None:
            raise ValueError("levels must come with image and known, got levels alone: they are what it is noised to")
        if tuple(levels.shape) != shape:
            raise ValueError(
                f"levels must hold a value per patch, {shape}, got {tuple(levels.shape)}: expand or repeat them"
            )
        outside = ~((levels >= 0) & (levels <= 1))  # NaN is outside, too
        if outside.any():
            raise ValueError(
                f"levels must lie in [0, 1], got {float(levels[outside][0]):g}: 0 keeps a patch, 1 draws it anew"
            )

    @abstractmethod
    def walk(self, start: Start) -> Iterator[Frame]:
        """The states from `start` to the result, of which the last one's patches are all at level 0."""


class Sampler(ImageSampler):
    """Walks a noise path back from s = 1 to s = 0 with a solver, on a uniform grid of s.

    Args:
        path: the path family; conditioned on what is known where an image is given.
        solver: the rule for one step.
        steps: number of steps, each of `solver.evaluations` evaluations of the network. Steps in which no patch of the
            batch moves are free.
        guidance: what the denoiser is guided by, applied in this order.
        refresh: evaluations between those that compute all patches, for networks that can compute some; 1 is exact.
        margin: patches around moving ones, in every direction, that are computed with them between refreshes.
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
        at_least("steps", steps, 1, "50 is usual")
        check_partial_updates(refresh, margin)
        if steps != int(steps):
            raise ValueError(f"steps must be a whole number, got {steps}: 50 is usual")
        self.path = path or Synchronous()
        if self.path.t_min > 0:
            raise ValueError(
                f"path must end at the clean image, got a floor t_min of {self.path.t_min}: "
                "Floored is for training and likelihoods"
            )
        self.solver = solver or DDIM()
        self.steps = steps
        self.guidance = list(guidance)
        self.refresh = refresh
        self.margin = margin

    def walk(self, start: Start) -> Iterator[Frame]:
        """The steps + 1 states of the path."""
        path = Conditioned(self.path, start.held) if start.known is not None else self.path
        if start.levels is not None:
            path = PartiallyNoised(path, start.levels)
        curve = path.curve(start.source)
        solver, x_t = self.solver.begin(), start.x_t
        progress = torch.linspace(1, 0, self.count(start.source.grid) + 1, dtype=torch.float64).tolist()

        def level_map(s: float) -> LevelMap:
            return curve(torch.full((len(x_t),), s, device=start.source.device, dtype=start.source.dtype))[0]

        t = level_map(progress[0])
        yield Frame(x_t, t, progress[0])
        for s in progress[1:]:
            to = level_map(s)
            noise = start.noise() if solver.stochastic else None
            moving = to < t
            start.moving(moving)
            if moving.any():
                x_t = start.with_known_pixels(solver(start.evaluate, x_t, t, to, noise).to(x_t.dtype), to)
            else:  # as after a step in which other images moved: no patch has a history
                solver = self.solver.begin()
            t = to
            yield Frame(x_t, t, s)

    def count(self, grid: tuple[int, int]) -> int:
        """Number of steps for level maps of (gh, gw)."""
        return self.steps


class Autoregressive(Sampler):
    """Patch after patch, each in `steps_per_patch` steps; with overlap, the next ones start before one is done.

    The number of steps follows from the grid: K groups take steps_per_patch (1 + (K - 1)(1 - overlap)) of them, rounded
    up. AsyncPatch Diffusion generates 64 patches in 16 steps each, 1024 evaluations (arXiv:2606.07079).

    Args:
        order: which patches move when; raster by default.
        overlap: share of a group's time in which the next one moves, too; in [0, 1).
        solver: the rule for one step.
        steps_per_patch: steps from noise to clean of every patch.
        guidance: what the denoiser is guided by, applied in this order.
        refresh: evaluations between those that compute all patches, for networks that can compute some; 1 is exact.
        margin: patches around moving ones, in every direction, that are computed with them between refreshes.
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
        at_least("steps_per_patch", steps_per_patch, 1, "16 is the paper's")
        self.order = order or Raster()
        self.overlap = overlap
        self.steps_per_patch = steps_per_patch
        super().__init__(Ordered(self.order, overlap), solver, guidance=guidance, refresh=refresh, margin=margin)

    def count(self, grid: tuple[int, int]) -> int:
        """Number of steps for level maps of (gh, gw)."""
        duration = 1 + (self.order.groups(grid) - 1) * (1 - self.overlap)
        return math.ceil(round(self.steps_per_patch * duration, 6))


def check_partial_updates(refresh: int, margin: int) -> None:
    """Raise ValueError unless the two say which patches are computed when."""
    at_least("refresh", refresh, 1, "1 computes all patches every time")
    at_least("margin", margin, 0, "0 computes only patches that move")
    if margin and refresh == 1:
        raise ValueError(
            f"margin must be 0 with refresh 1, which computes all patches, got {margin}: refresh more rarely"
        )


def _check_label(denoiser: DenoiserLike, label: Labels | None) -> None:
    null = getattr(denoiser, "null_label", None)
    if label is None or null is None:
        return
    if label.dtype != torch.int64:
        raise ValueError(f"label must be int64, one class per image, got {label.dtype}: use label.long()")
    wrong = (label < 0) | (label > null)
    if wrong.any():
        raise ValueError(f"label must lie in 0 .. {null - 1}, or be {null} for none, got {int(label[wrong][0])}")


def _check(
    seeds: Sequence[int],
    shape: tuple[int, int, int],
    label: Labels | None,
    image: Image | None,
    known: KnownPixels | None,
) -> None:
    if image is not None and not image.is_floating_point():
        raise ValueError(f"image must be floating point in [-1, 1], got {image.dtype}: use image / 127.5 - 1")
    if known is not None and known.dtype != torch.bool:
        raise ValueError(f"known must be bool, True = known, got {known.dtype}: use mask > 0.5")
    if not len(seeds):
        raise ValueError("seeds must name at least one image, got none")
    if (image is None) != (known is None):
        given, missing = ("known", "image") if image is None else ("image", "known")
        raise ValueError(f"image and known go together, got {given} without {missing}")
    if label is not None and len(label) != len(seeds):
        raise ValueError(f"label must hold one class per seed, got {len(label)} for {len(seeds)} seeds")
    if image is not None and tuple(image.shape) != (len(seeds), *shape):
        raise ValueError(f"image must have shape {(len(seeds), *shape)}, got {tuple(image.shape)}")
    if known is not None and tuple(known.shape) != (len(seeds), *shape[1:]):
        raise ValueError(
            f"known must have shape {(len(seeds), *shape[1:])}, True = known, got {tuple(known.shape)}: "
            "resize the mask to the image, nearest neighbour"
        )
