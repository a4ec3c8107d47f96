"""Looking ahead: uncertain patches are shown where the sure ones are going."""

import torch
from jaxtyping import Int64
from torch import Tensor

from asyncdiff.checks import at_least, within
from asyncdiff.denoising.denoiser import DenoiserLike, Prediction
from asyncdiff.denoising.uncertainty import check_finite, rms_error, surest
from asyncdiff.randomness import RandomSource
from asyncdiff.sampling.guidance import Guidance, Guided, select
from asyncdiff.shapes import Image, Labels, LevelMap, UniqueLevels, to_pixels


class LookAhead(Guidance):
    """Uncertain patches are predicted with the sure ones shown further ahead than they are.

    The patches whose uncertainty lies below the `share` quantile of their image are taken ahead provisionally, by their
    own prediction: 1 - t grows by the factor `ratio`, cut at clean. A second evaluation sees them so; the velocity of
    the others is taken from it, that of the sure ones from the first. All then take the step that the sampler asks for:
    any sampler, solver and path. Images whose noisiest patch that has started is within the first `skipped` of the
    levels are predicted as usual, and so are those in which no patch is surer than the rest. The look-ahead of Patch
    Forcing (arXiv:2604.19141), where times count from noise: t here is 1 - t there.

    Args:
        share: quantile of the uncertainty below which a patch is sure; in [0, 1], 0 changes nothing.
        ratio: growth of 1 - t; at least 1, which changes nothing.
        skipped: share of the levels below pure noise in which nobody looks ahead.
    """

    def __init__(self, share: float = 0.4, ratio: float = 1.5, skipped: float = 0.05):
        within("share", share, 0, 1, "0.4 is usual, 0 is off")
        at_least("ratio", ratio, 1, "1.5 is the paper's, 1 is off")
        within("skipped", skipped, 0, 1, "0.05 is the paper's")
        self.share = share
        self.ratio = ratio
        self.skipped = skipped

    def begin(self, denoiser: DenoiserLike, source: RandomSource, shape: tuple[int, int, int]) -> DenoiserLike:
        """The denoiser itself at share 0 or ratio 1."""
        return denoiser if self.share == 0 or self.ratio == 1 else _LookingAhead(denoiser, self)


class _LookingAhead(Guided):
    def __init__(self, denoiser: DenoiserLike, rule: LookAhead):
        super().__init__(denoiser)
        self.rule = rule

    def __call__(
        self, x_t: Image, t: LevelMap, label: Labels | None = None, *, unique: UniqueLevels | None = None
    ) -> Prediction:
        """Two evaluations, one after the other; one where nobody looks ahead."""
        first = self.denoiser(x_t, t, label, unique=unique)
        check_finite(first, torch.arange(len(t), device=t.device))
        noisiest = t.masked_fill(t >= 1, 0).amax(dim=(1, 2), keepdim=True)  # of those that do not wait
        begun = (noisiest > 0) & (noisiest <= 1 - self.rule.skipped)
        sure = surest(rms_error(first, "LookAhead"), t > 0, self.rule.share) & begun
        uncertain = sure.flatten(1).any(1)[:, None, None] & (t > 0) & ~sure
        if not uncertain.any() and not self.steady:
            return first
        sure = sure & uncertain.flatten(1).any(1)[:, None, None]
        size = (x_t.shape[2], x_t.shape[3])
        t_ahead = torch.where(sure, (1 - self.rule.ratio * (1 - t)).clamp(min=0), t)
        ahead = self.process.noised(first.x, first.eps, t_ahead.to(x_t.dtype))
        second = self.denoiser(torch.where(to_pixels(sure, size), ahead, x_t), t_ahead, label)
        v = torch.where(to_pixels(uncertain, size), second.v, first.v)
        return Prediction(self.process, x_t, t, v, first.logvar)

    def select(self, rows: Int64[Tensor, " n"]) -> DenoiserLike:
        return _LookingAhead(select(self.denoiser, rows), self.rule)
