"""What a network says of its own errors, read from its predictions."""

import math

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from asyncdiff.denoising.denoiser import Prediction
from asyncdiff.shapes import LevelMap, to_pixels

# What one image's log-variance differs by between batch sizes is rounding, and must not decide between equal patches.
LOGVAR_STEP = 1 / 1024
ROUNDING = 1e-6  # of counts that are whole but for rounding, such as 0.7 * 10


def surest(uncertainty: LevelMap, among: Bool[Tensor, "b gh gw"], share: float) -> Bool[Tensor, "b gh gw"]:
    """True for the patches `among` which are below the `share` quantile of their image's uncertainties.

    The quantile is one of the values, the next one after `share` of them: equal patches are never told apart, and with
    share 1 all are sure.
    """
    ranked = uncertainty.masked_fill(~among, math.inf).flatten(1).sort(dim=1).values
    ranked = torch.cat([ranked, torch.full_like(ranked[:, :1], math.inf)], dim=1)
    place = (share * among.flatten(1).sum(1) + ROUNDING).long()
    return among & (uncertainty < ranked.gather(1, place[:, None])[:, :, None])


def rms_error(prediction: Prediction, rule: str) -> LevelMap:
    """Predicted rms error of the velocity, per patch."""
    if prediction.logvar is None:
        raise ValueError(
            f"{rule} needs a network that predicts its uncertainty, got one without: train with uncertainty: true"
        )
    logvar = (prediction.logvar.to(prediction.t.dtype) / LOGVAR_STEP).round() * LOGVAR_STEP
    return (logvar / 2).exp()


def check_finite(prediction: Prediction, rows: Int64[Tensor, " n"]) -> None:
    """Raise FloatingPointError, with the place named, where noisy patches have predictions that are not numbers."""
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
                f"row {row}, column {column}, level {float(t[image, row, column]):g}: take an earlier checkpoint"
            )
