"""Norms in the precision of what comes in: autocast would have them return float32 on CUDA, which then is kept."""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """PyTorch's; its sums are float32 all the same, and its gain follows the precision of the input.

    Args:
        dim: size of the last axis, over which the root mean square is taken.
        eps: added to the mean square.
        device: of the gain.
        dtype: of the gain.
    """

    def __init__(
        self, dim: int, eps: float = 1e-6, device: torch.device | None = None, dtype: torch.dtype | None = None
    ):
        super().__init__(dim, eps=eps, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """`x` divided by the root mean square over its last axis, times a gain per channel."""
        with _as_it_comes(x.device):
            return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class GroupNorm(nn.GroupNorm):
    """PyTorch's, whose gain and bias follow the precision of the input."""

    def forward(self, x: Tensor) -> Tensor:
        """`x` with mean 0 and variance 1 over every group of channels, times a gain, plus a bias."""
        with _as_it_comes(x.device):
            return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


def _as_it_comes(device: torch.device) -> AbstractContextManager:
    """Without autocast; the meta device, on which operations are counted, has none."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
