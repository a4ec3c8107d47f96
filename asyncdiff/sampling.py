"""From seeds to images: the sampling loop, written once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from asyncdiff.checks import at_least
from asyncdiff.denoiser import Denoise, Prediction
from asyncdiff.paths import Conditioned, Path, Synchronous
from asyncdiff.randomness import normal, per_image
from asyncdiff.shapes import Image, KnownPixels, Labels, LevelMap, known_patches, to_pixels
from asyncdiff.solvers import Ddim, Solver


@dataclass(frozen=True)
class Frame:
    """One state of the reverse process: the noisy image, its level map, and its progress s from 1 to 0."""

    x_t: Image
    t: LevelMap
    s: float


class Sampler:
    """Walks a noise path back from s = 1 to s = 0 with a solver, on a uniform grid of s.

    Image i depends on seed i only: its path, its first noise and every later noise come from its own generator, on the
    CPU, whatever the batch or the device.

    Args:
        path: the path family; conditioned on what is known where an image is given.
        solver: the rule for one step.
        steps: number of steps, each of `solver.evaluations` evaluations of the network.
    """

    def __init__(self, path: Path | None = None, solver: Solver | None = None, steps: int = 50):
        at_least("steps", steps, 1, "50 is usual")
        self.path = path or Synchronous()
        if self.path.t_min > 0:
            raise ValueError(
                f"path must end at the clean image, got a floor t_min of {self.path.t_min}: "
                "Floored is for training and likelihoods"
            )
        self.solver = solver or Ddim()
        self.steps = steps

    def __call__(
        self,
        denoiser: Denoise,
        *,
        seeds: Sequence[int],
        shape: tuple[int, int, int],
        label: Labels | None = None,
        image: Image | None = None,
        known: KnownPixels | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "b c h w"]:
        """One image of `shape` (c, h, w) per seed; where `known` is True it is `image`, bit for bit.

        Args:
            denoiser: a trained denoiser, a guided one or an exact oracle.
            seeds: one per image.
            shape: (c, h, w) of every image.
            label: class per image, None without.
            image: what is known, (b, c, h, w); its unknown pixels are never read.
            known: True = known, (b, h, w). A patch counts as known where all its pixels are; pixels known inside other
                patches are restored at the end.
            device: where the denoiser is.
            dtype: floating type of the images.
        """
        frame = None
        for frame in self.frames(  # noqa: B007  the last one is wanted
            denoiser, seeds=seeds, shape=shape, label=label, image=image, known=known, device=device, dtype=dtype
        ):
            pass
        assert frame is not None, "a walk has at least two frames"
        if image is None or known is None:
            return frame.x_t
        return torch.where(known[:, None].to(device), image.to(device, dtype), frame.x_t)

    @torch.no_grad()
    def frames(
        self,
        denoiser: Denoise,
        *,
        seeds: Sequence[int],
        shape: tuple[int, int, int],
        label: Labels | None = None,
        image: Image | None = None,
        known: KnownPixels | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Iterator[Frame]:
        """The steps + 1 states from pure noise to the result, as `__call__` walks them."""
        _check(seeds, shape, label, image, known)
        generators = per_image(seeds)
        grid = denoiser.grid((shape[1], shape[2]))
        path = self.path
        # Drawn before anything else, in a fixed order: what is known never changes an image's noise.
        x_t = normal((len(seeds), *shape), generator=generators, device=device, dtype=dtype)
        if image is not None and known is not None:
            held = known_patches(known.to(device), grid)
            path = Conditioned(path, held)
            x_t = torch.where(to_pixels(held, (shape[1], shape[2])), image.to(device, dtype), x_t)
        exact = torch.promote_types(dtype, torch.float32)  # half precision would round the steps of a path away
        curve = path.draw(len(seeds), grid, generator=generators, device=device, dtype=exact)

        def evaluate(x_t: Image, t: LevelMap) -> Prediction:
            return denoiser(x_t, t, label)

        solver = self.solver.begin()
        progress = torch.linspace(1, 0, self.steps + 1, dtype=torch.float64).tolist()
        maps = (curve(torch.full((len(seeds),), s, device=device, dtype=exact))[0] for s in progress)
        t = next(maps)
        yield Frame(x_t, t, progress[0])
        for s, to in zip(progress[1:], maps, strict=True):
            noise = None
            if solver.stochastic:
                noise = normal(x_t.shape, generator=generators, device=device, dtype=dtype)
            x_t = solver(evaluate, x_t, t, to, noise).to(dtype)
            t = to
            yield Frame(x_t, t, s)


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
