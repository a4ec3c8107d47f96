"""Predicted errors of a network with an uncertainty head: per-patch rms errors and the most certain patches."""

import math

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from asyncdiff.denoising.denoiser import Prediction
from asyncdiff.shapes import LevelMap, to_pixels

# Log-variances are rounded to multiples of this, so that rounding errors, which depend on the batch size, do not change
# the ranking of patches.
LOGVAR_STEP = 1 / 1024
ROUNDING = 1e-6  # added to products that are integers up to rounding, such as 0.7 * 10


def most_certain(uncertainty: LevelMap, among: Bool[Tensor, "b gh gw"], share: float) -> Bool[Tensor, "b gh gw"]:
    """Select the patches whose uncertainty is below the `share` quantile of their image's candidates.

    The quantile is one of the sorted values, the next one after a fraction `share` of them. Patches of equal
    uncertainty are therefore treated alike, and share 1 selects all candidates.

    Args:
        uncertainty: uncertainty of every patch.
        among: True for the candidates.
        share: fraction that defines the quantile, in [0, 1].

    Returns:
        True for the selected patches.
    """
    ranked = uncertainty.masked_fill(~among, math.inf).flatten(1).sort(dim=1).values
    ranked = torch.cat([ranked, torch.full_like(ranked[:, :1], math.inf)], dim=1)
    place = (share * among.flatten(1).sum(1) + ROUNDING).long()
    return among & (uncertainty < ranked.gather(1, place[:, None])[:, :, None])


def predicted_rms_error(prediction: Prediction, rule: str) -> LevelMap:
    """Return the predicted rms error of the velocity per patch; raise ValueError, naming `rule`, if there is none."""
    if prediction.logvar is None:
        raise ValueError(
            f"{rule} needs a network that predicts its uncertainty, got one without an uncertainty head: train "
            "a network with uncertainty: true"
        )
    logvar = (prediction.logvar.to(prediction.t.dtype) / LOGVAR_STEP).round() * LOGVAR_STEP
    return (logvar / 2).exp()


def check_finite(prediction: Prediction, rows: Int64[Tensor, " n"]) -> None:
    """Raise FloatingPointError, naming image, patch and level, if the prediction of a noisy patch is not finite."""
    t, finite = prediction.t, {"velocity": prediction.v.isfinite().all(1, keepdim=True)}
    if prediction.logvar is not None:
        finite["log-variance"] = to_pixels(prediction.logvar.isfinite(), (prediction.v.shape[2], prediction.v.shape[3]))
    for name, numbers in finite.items():
        b, gh, gw = t.shape
        patches = numbers.reshape(b, gh, numbers.shape[2] // gh, gw, -1).all(4).all(2)
        wrong = ~patches & (t > 0)
        if wrong.any():
            image, row, column = wrong.nonzero()[0].tolist()
            raise FloatingPointError(
                f"the predicted {name} must be finite, got NaN or infinity in image {int(rows[image])} of the batch at "
                f"row {row}, column {column}, level {float(t[image, row, column]):g}: use an earlier checkpoint"
            )
