"""Look-ahead guidance: predict uncertain patches after moving the certain ones ahead."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from asyncdiff.checks import at_least, within
from asyncdiff.denoising.denoiser import DenoiserLike, Prediction
from asyncdiff.denoising.uncertainty import FiniteChecks, most_certain, predicted_rms_error
from asyncdiff.devices import to_device
from asyncdiff.randomness import RandomSource
from asyncdiff.sampling.guidance import Guidance, GuidedDenoiser, select
from asyncdiff.sampling.hosted_levels import HostedLevels
from asyncdiff.shapes import Image, IndexedLevels, Labels, LevelMap, Levels, to_pixels


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
        return denoiser if self.share == 0 or self.ratio == 1 else _LookAheadDenoiser(denoiser, self, FiniteChecks())


class _LookAheadDenoiser(GuidedDenoiser):
    def __init__(self, denoiser: DenoiserLike, rule: LookAhead, checks: FiniteChecks):
        super().__init__(denoiser)
        self.rule = rule
        self.checks = checks

    def __call__(self, x_t: Image, t: Levels, label: Labels | None = None) -> Prediction:
        first = self.denoiser(x_t, t, label)
        levels = first.t
        self.checks.add(first, torch.arange(len(levels), device="cpu"))
        uncertainty = predicted_rms_error(first, "LookAhead")
        if isinstance(t, HostedLevels) and not self.fixed_branches and not self._may_look_ahead(t.host_values):
            return first
        noisiest = levels.masked_fill(levels >= 1, 0).amax(dim=(1, 2), keepdim=True)  # patches at 1 have not started
        active = (noisiest > 0) & (noisiest <= 1 - self.rule.skipped)
        certain = most_certain(uncertainty, levels > 0, self.rule.share) & active
        uncertain = certain.flatten(1).any(1)[:, None, None] & (levels > 0) & ~certain
        # Only the device knows the certain patches. The host does not wait for a GPU to learn that there are none.
        on_cpu = uncertain.device.type == "cpu"
        if on_cpu and not self.fixed_branches and not uncertain.any():
            return first
        certain = certain & uncertain.flatten(1).any(1)[:, None, None]
        size = (x_t.shape[2], x_t.shape[3])
        t_ahead = torch.where(certain, self._ahead(levels), levels)
        ahead = self.process.noised(first.x, first.eps, t_ahead.to(x_t.dtype))
        x_ahead = torch.where(to_pixels(certain, size), ahead, x_t)
        indexed = t_ahead if on_cpu or not isinstance(t, HostedLevels) else self._indexed(t, t_ahead, certain)
        second = self.denoiser(x_ahead, indexed, label)
        v = torch.where(to_pixels(uncertain, size), second.v, first.v)
        return Prediction(self.process, x_t, levels, v, first.logvar)

    def _ahead(self, levels: Float[Tensor, "*levels"]) -> Float[Tensor, "*levels"]:
        """Return the levels to which certain patches are moved."""
        return (1 - self.rule.ratio * (1 - levels)).clamp(min=0)

    def _may_look_ahead(self, levels: Float[Tensor, "*levels"]) -> bool:
        """Return whether any image of these levels may be predicted with look-ahead."""
        return bool(((levels > 0) & (levels < 1) & (levels <= 1 - self.rule.skipped)).any())

    def _indexed(self, t: HostedLevels, t_ahead: LevelMap, certain: Bool[Tensor, "b rows columns"]) -> IndexedLevels:
        """Return `t_ahead` with the levels that may occur in it, which the host knows, or with those of all patches."""
        r, host_values = len(t.host_values), torch.cat([t.host_values, self._ahead(t.host_values)])
        if 2 * r > t_ahead.numel() and not isinstance(self.denoiser, GuidedDenoiser):
            each = torch.arange(t_ahead.numel(), device=t_ahead.device)
            return IndexedLevels(t_ahead.flatten(), each.view(t_ahead.shape))
        index = torch.where(certain, t.index + r, t.index)
        return HostedLevels(to_device(host_values, t_ahead.device), index, t_ahead, None, host_values)

    def select(self, rows: Int64[Tensor, " n"]) -> DenoiserLike:
        return _LookAheadDenoiser(select(self.denoiser, rows), self.rule, self.checks)

    def finish(self) -> None:
        self.checks.finish()
        super().finish()
