"""Training loss: the weighted squared error of the velocity at random level maps."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from asyncdiff.denoising.denoiser import DenoiserLike
from asyncdiff.denoising.weightings import Weighting
from asyncdiff.noise.level_samplers import LevelDraw
from asyncdiff.shapes import Image, Labels, LevelMap, mean_per_patch, upsampled_to


@dataclass(frozen=True)
class Loss:
    """Training loss of a batch, and its components.

    Attributes:
        per_image: weighted mean over the patches of each image. With the weighting `ELBO`, it is in nats per dimension
            of the entire image, in which clean patches count as 0.
        error: unweighted mean squared error of the velocity, per patch.
        t: level map of `error`.
        uncertainty: negative log-likelihood of the errors under the predicted log-variances, in nats per pixel,
            averaged over the noisy patches of each image; None if the network predicts no log-variance.
    """

    per_image: Float[Tensor, " b"]
    error: LevelMap
    t: LevelMap
    uncertainty: Float[Tensor, " b"] | None = None


def training_loss(
    denoiser: DenoiserLike, x: Image, eps: Image, draw: LevelDraw, weighting: Weighting, label: Labels | None = None
) -> Loss:
    """Return the loss of `denoiser` on the images `x`, noised with `eps` at the levels of `draw`.

    Args:
        denoiser: denoiser to train.
        x: clean images.
        eps: standard normal noise.
        draw: level maps, from a level sampler.
        weighting: weight of each patch by its level.
        label: class labels; None for an unconditional loss.

    Returns:
        The loss per image, whose mean is to be minimized, and its components.

    Examples:
        >>> import torch
        >>> from asyncdiff.denoising import Denoiser, Velocity
        >>> from asyncdiff.networks import DiT
        >>> from asyncdiff.noise import AlongPath, RectifiedFlow
        >>> denoiser = Denoiser(DiT(channels=1, patch_size=2, dim=32, depth=2, heads=4), RectifiedFlow())
        >>> x = torch.rand(8, 1, 8, 8) * 2 - 1
        >>> draw = AlongPath()(len(x), denoiser.grid((8, 8)))
        >>> loss = training_loss(denoiser, x, torch.randn_like(x), draw, Velocity())
        >>> loss.per_image.mean().backward()
        >>> loss.per_image.shape, loss.error.shape
        (torch.Size([8]), torch.Size([8, 4, 4]))
    """
    process = denoiser.process
    prediction = denoiser(process.noised(x, eps, draw.t), draw.levels, label)
    residual = process.velocity(x, eps, draw.t) - prediction.v
    error = mean_per_patch(residual.square(), (draw.t.shape[1], draw.t.shape[2]))
    # A patch at t = 0 has nothing to predict: its target contains noise that is not in the image.
    weight = weighting(process, draw.t, draw.slope).masked_fill(draw.t == 0, 0)
    per_image = (weight * error).mean(dim=(1, 2))
    per_image = per_image if draw.importance is None else draw.importance * per_image
    uncertainty = None if prediction.logvar is None else _gaussian_nll(prediction.logvar, residual, draw.t)
    return Loss(per_image, error, draw.t, uncertainty)


def _gaussian_nll(
    logvar: Float[Tensor, "b lh lw"], residual: Float[Tensor, "b c h w"], t: LevelMap
) -> Float[Tensor, " b"]:
    """Return -log N(residual; 0, var) per pixel without its constant; no gradient reaches the velocity."""
    grid = (logvar.shape[1], logvar.shape[2])
    error, noisy = mean_per_patch(residual.detach().square(), grid), upsampled_to(t, grid) > 0
    nats = 0.5 * (logvar + error * (-logvar).exp())
    return (nats * noisy).sum(dim=(1, 2)) / noisy.sum(dim=(1, 2)).clamp(min=1)
