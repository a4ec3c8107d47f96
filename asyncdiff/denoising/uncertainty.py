"""Predicted errors of a network with an uncertainty head: per-patch rms errors and the most certain patches."""

import math
from collections import deque
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from asyncdiff.denoising.denoiser import Prediction
from asyncdiff.devices import HostCopy
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


class FiniteChecks:
    """Checks that predictions are finite, without waiting: results of a GPU are looked at when they have arrived."""

    def __init__(self) -> None:
        self._pending: deque[_FiniteCheck] = deque()

    def add(self, prediction: Prediction, rows: Int64[Tensor, " n"]) -> None:
        """Check a prediction: at once on the CPU, with one of the next calls on a GPU.

        Args:
            prediction: prediction to check in its noisy patches.
            rows: number of every image, on the CPU, to be named in the error.

        Raises:
            FloatingPointError: this prediction, or one before, is not finite.
        """
        t, finite = prediction.t, {"velocity": prediction.v.isfinite().all(1, keepdim=True)}
        if prediction.logvar is not None:
            size = (prediction.v.shape[2], prediction.v.shape[3])
            finite["log-variance"] = to_pixels(prediction.logvar.isfinite(), size)
        b, gh, gw = t.shape
        patches = [n.reshape(b, gh, n.shape[2] // gh, gw, -1).all(4).all(2) for n in finite.values()]
        wrong = HostCopy(~torch.stack(patches) & (t > 0))
        self._pending.append(_FiniteCheck(tuple(finite), wrong, t, rows))
        self.look()

    def look(self) -> None:
        """Look at the results that have arrived; raise FloatingPointError as `add` does."""
        while self._pending and self._pending[0].wrong.arrived:
            self._pending.popleft().finish()

    def finish(self) -> None:
        """Look at all results that are left; raise FloatingPointError as `add` does."""
        while self._pending:
            self._pending.popleft().finish()


@dataclass(frozen=True)
class _FiniteCheck:
    names: tuple[str, ...]
    wrong: HostCopy  # bool (names, b, gh, gw)
    t: LevelMap
    rows: Int64[Tensor, " n"]

    def finish(self) -> None:
        """Raise FloatingPointError, naming image, patch and level, if a number is not finite."""
        wrong = self.wrong.read()
        if wrong.any():
            name, image, row, column = wrong.nonzero()[0].tolist()
            raise FloatingPointError(
                f"the predicted {self.names[name]} must be finite, got NaN or infinity in image "
                f"{int(self.rows[image])} of the batch at row {row}, column {column}, level "
                f"{float(self.t[image, row, column]):g}: use an earlier checkpoint"
            )
