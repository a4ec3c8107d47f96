"""The training loss: the weighted squared error of the velocity at a random level map."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from asyncdiff.denoising.denoiser import DenoiserLike
from asyncdiff.denoising.weightings import Weighting
from asyncdiff.noise.levels import LevelDraw
from asyncdiff.shapes import Image, Labels, LevelMap, mean_per_patch, upsampled_to


@dataclass(frozen=True)
class Loss:
    """A batch's loss with what it is made of.

    Attributes:
        per_image: weighted mean over the patches of each image; under `ELBO` nats per dimension of the whole image,
            patches that are given clean counting as 0.
        error: mean squared error of the velocity per patch, unweighted.
        t: the level map of that error.
        uncertainty: negative log-likelihood of the errors under the predicted log-variances, nats per pixel, mean over
            the noisy patches of each image; None where the network predicts none.
    """

    per_image: Float[Tensor, " b"]
    error: LevelMap
    t: LevelMap
    uncertainty: Float[Tensor, " b"] | None = None


def training_loss(
    denoiser: DenoiserLike, x: Image, eps: Image, draw: LevelDraw, weighting: Weighting, label: Labels | None = None
) -> Loss:
    """The loss of `denoiser` on `x` noised with `eps` at the levels of `draw`."""
    process = denoiser.process
    prediction = denoiser(process.noised(x, eps, draw.t), draw.t, label, unique=draw.unique)
    residual = process.velocity(x, eps, draw.t) - prediction.v
    error = mean_per_patch(residual.square(), (draw.t.shape[1], draw.t.shape[2]))
    # A patch without noise has nothing to be predicted: its target holds a noise that is not in the image.
    weight = weighting(process, draw.t, draw.slope).masked_fill(draw.t == 0, 0)
    per_image = (weight * error).mean(dim=(1, 2))
    per_image = per_image if draw.importance is None else draw.importance * per_image
    uncertainty = None if prediction.logvar is None else _gaussian_nll(prediction.logvar, residual, draw.t)
    return Loss(per_image, error, draw.t, uncertainty)


def _gaussian_nll(
    logvar: Float[Tensor, "b lh lw"], residual: Float[Tensor, "b c h w"], t: LevelMap
) -> Float[Tensor, " b"]:
    """-log N(residual; 0, var) per pixel, constant left out. The velocity learns nothing from it: errors are given."""
    grid = (logvar.shape[1], logvar.shape[2])
    error, noisy = mean_per_patch(residual.detach().square(), grid), upsampled_to(t, grid) > 0
    nats = 0.5 * (logvar + error * (-logvar).exp())
    return (nats * noisy).sum(dim=(1, 2)) / noisy.sum(dim=(1, 2)).clamp(min=1)
