"""Look-ahead guidance: predict uncertain patches after moving the certain ones ahead."""

import torch
from jaxtyping import Int64
from torch import Tensor

from asyncdiff.checks import at_least, within
from asyncdiff.denoising.denoiser import DenoiserLike, Prediction
from asyncdiff.denoising.uncertainty import check_finite, most_certain, predicted_rms_error
from asyncdiff.randomness import RandomSource
from asyncdiff.sampling.guidance import Guidance, GuidedDenoiser, select
from asyncdiff.shapes import Image, Labels, Levels, to_pixels


class LookAhead(Guidance):
    """Look-ahead of Patch Forcing (arXiv:2604.19141): predict uncertain patches with the certain ones already cleaner.

    The patches whose uncertainty lies below the `share` quantile of their image are certain. They are provisionally
    moved ahead along their own prediction: 1 - t grows by the factor `ratio`, clipped at the clean image. A second
    evaluation sees them there; uncertain patches take their velocity from it, certain ones from the first. All patches
    then take the sampler's step, so this works with any sampler, solver and path, at twice the evaluations. Needs a
    network that predicts its uncertainty.

    Images whose noisiest started patch is still above level 1 - `skipped`, or in which no patch is more certain than
    the rest, are predicted without look-ahead. The paper's time runs from noise to image: its t is 1 - t here.

    Args:
        share: quantile of the uncertainty below which a patch is certain; in [0, 1], 0 changes nothing.
        ratio: growth of 1 - t; at least 1, which changes nothing.
        skipped: width of the interval of levels below pure noise that is sampled without look-ahead; in [0, 1].
    """

    def __init__(self, share: float = 0.4, ratio: float = 1.5, skipped: float = 0.05):
        within("share", share, 0, 1, "the default is 0.4, 0 turns look-ahead off")
        at_least("ratio", ratio, 1, "the paper uses 1.5, 1 turns look-ahead off")
        within("skipped", skipped, 0, 1, "the paper uses 0.05")
        self.share = share
        self.ratio = ratio
        self.skipped = skipped

    def begin(self, denoiser: DenoiserLike, source: RandomSource, shape: tuple[int, int, int]) -> DenoiserLike:
        """Return the guided denoiser; at share 0 or ratio 1 the denoiser itself."""
        return denoiser if self.share == 0 or self.ratio == 1 else _LookAheadDenoiser(denoiser, self)


class _LookAheadDenoiser(GuidedDenoiser):
    def __init__(self, denoiser: DenoiserLike, rule: LookAhead):
        super().__init__(denoiser)
        self.rule = rule

    def __call__(self, x_t: Image, t: Levels, label: Labels | None = None) -> Prediction:
        first = self.denoiser(x_t, t, label)
        t = first.t
        check_finite(first, torch.arange(len(t), device=t.device))
        noisiest = t.masked_fill(t >= 1, 0).amax(dim=(1, 2), keepdim=True)  # patches at 1 have not started
        active = (noisiest > 0) & (noisiest <= 1 - self.rule.skipped)
        certain = most_certain(predicted_rms_error(first, "LookAhead"), t > 0, self.rule.share) & active
        uncertain = certain.flatten(1).any(1)[:, None, None] & (t > 0) & ~certain
        if not uncertain.any() and not self.fixed_branches:
            return first
        certain = certain & uncertain.flatten(1).any(1)[:, None, None]
        size = (x_t.shape[2], x_t.shape[3])
        t_ahead = torch.where(certain, (1 - self.rule.ratio * (1 - t)).clamp(min=0), t)
        ahead = self.process.noised(first.x, first.eps, t_ahead.to(x_t.dtype))
        second = self.denoiser(torch.where(to_pixels(certain, size), ahead, x_t), t_ahead, label)
        v = torch.where(to_pixels(uncertain, size), second.v, first.v)
        return Prediction(self.process, x_t, t, v, first.logvar)

    def select(self, rows: Int64[Tensor, " n"]) -> DenoiserLike:
        return _LookAheadDenoiser(select(self.denoiser, rows), self.rule)
