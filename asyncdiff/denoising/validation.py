"""Validation errors: the loss on held-out images, and the gap between constant and heterogeneous level maps."""

import torch
from jaxtyping import Float
from torch import Tensor

from asyncdiff.denoising.denoiser import DenoiserLike
from asyncdiff.denoising.loss import training_loss
from asyncdiff.denoising.weightings import Velocity, Weighting
from asyncdiff.noise.level_samplers import AlongPath, LevelDraw
from asyncdiff.noise.paths import AsyncPatch
from asyncdiff.randomness import Generators, normal, uniform
from asyncdiff.shapes import Image, IndexedLevels, Labels

HELD_OUT_ERRORS = ("loss", "error_heterogeneous", "error_constant", "error_gap")


def held_out_errors(
    denoiser: DenoiserLike,
    x: Image,
    draw: LevelDraw,
    weighting: Weighting,
    label: Labels | None,
    generator: Generators,
) -> dict[str, Float[Tensor, " b"]]:
    """Return the errors named in `HELD_OUT_ERRORS`, one value per image.

    "loss" is the training loss. The others are unweighted mean squared errors of the velocity: at AsyncPatch maps
    ("error_heterogeneous"), at constant maps of matched levels ("error_constant"), and constant minus heterogeneous
    ("error_gap"). The gap shows how much worse a network trained on one kind of map does on the other.

    Args:
        denoiser: denoiser to evaluate.
        x: held-out images.
        draw: level maps of the training distribution, for the loss.
        weighting: weighting of the loss.
        label: class labels; None for unconditional errors.
        generator: one generator for the batch, or one per image; None for torch's global one.

    Returns:
        Errors per image, by name.
    """
    eps = normal(x.shape, generator=generator, device=x.device)
    heterogeneous, constant = matched_maps(len(x), denoiser.grid((x.shape[2], x.shape[3])), generator, x.device)
    loss = training_loss(denoiser, x, eps, draw, weighting, label).per_image
    error_heterogeneous, error_constant = (
        training_loss(denoiser, x, eps, maps, Velocity(), label).per_image for maps in (heterogeneous, constant)
    )
    errors = (loss, error_heterogeneous, error_constant, error_constant - error_heterogeneous)
    return dict(zip(HELD_OUT_ERRORS, errors, strict=True))


def matched_maps(
    batch: int, grid: tuple[int, int], generator: Generators, device: torch.device | str = "cpu"
) -> tuple[LevelDraw, LevelDraw]:
    """Draw AsyncPatch maps, and for each of them a constant map at the level of one of its patches.

    Both kinds have the same distribution of levels. They do not depend on the training distribution, so errors of
    different runs are comparable.

    Args:
        batch: number of images.
        grid: (gh, gw) of the level maps.
        generator: one generator for the batch, or one per image; None for torch's global one.
        device: device of the level maps.

    Returns:
        AsyncPatch maps and constant maps.
    """
    heterogeneous = AlongPath(AsyncPatch())(batch, grid, generator=generator, device=device)
    patch = (uniform((batch,), generator=generator, device=device) * (grid[0] * grid[1])).long()
    t = heterogeneous.t.flatten(1).gather(1, patch[:, None])[:, 0]
    return LevelDraw(heterogeneous.t), LevelDraw(IndexedLevels.per_image(t))
