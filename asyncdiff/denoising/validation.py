"""What is measured on held-out images: the objective, and the gap between constant and heterogeneous level maps."""

import torch
from jaxtyping import Float
from torch import Tensor

from asyncdiff.denoising.denoiser import DenoiserLike
from asyncdiff.denoising.loss import training_loss
from asyncdiff.denoising.weightings import Velocity, Weighting
from asyncdiff.noise.levels import AlongPath, LevelDraw
from asyncdiff.noise.paths import AsyncPatch
from asyncdiff.randomness import Generators, normal, uniform
from asyncdiff.shapes import Image, Labels, UniqueLevels

HELD_OUT_ERRORS = ("loss", "error_heterogeneous", "error_constant", "error_gap")


def held_out_errors(
    denoiser: DenoiserLike,
    x: Image,
    draw: LevelDraw,
    weighting: Weighting,
    label: Labels | None,
    generator: Generators,
) -> dict[str, Float[Tensor, " b"]]:
    """One value per image of each of `HELD_OUT_ERRORS`.

    "loss" is the objective at the training distribution's `draw`. The errors of the velocity, unweighted, are those at
    AsyncPatch maps, at constant maps of matched levels, and their difference: what a network that is trained on one
    kind of map loses on the other.
    """
    eps = normal(x.shape, generator=generator, device=x.device)
    varied, constant = matched_maps(len(x), denoiser.grid((x.shape[2], x.shape[3])), generator, x.device)
    loss = training_loss(denoiser, x, eps, draw, weighting, label).per_image
    on_varied, on_constant = (
        training_loss(denoiser, x, eps, maps, Velocity(), label).per_image for maps in (varied, constant)
    )
    return dict(zip(HELD_OUT_ERRORS, (loss, on_varied, on_constant, on_constant - on_varied), strict=True))


def matched_maps(
    batch: int, grid: tuple[int, int], generator: Generators, device: torch.device | str = "cpu"
) -> tuple[LevelDraw, LevelDraw]:
    """AsyncPatch maps, and constant maps at the level of one of their patches each: the same levels on both sides.

    The maps are the same whatever the training distribution, so that runs can be compared.
    """
    varied = AlongPath(AsyncPatch())(batch, grid, generator=generator, device=device)
    pick = (uniform((batch,), generator=generator, device=device) * (grid[0] * grid[1])).long()
    t = varied.t.flatten(1).gather(1, pick[:, None])[:, 0]
    index = torch.arange(batch, device=t.device)[:, None, None]
    return LevelDraw(varied.t), LevelDraw(t[:, None, None], None, UniqueLevels(t, index))
