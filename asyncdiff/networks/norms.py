"""Normalisation by the root mean square."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RmsNorm(nn.RMSNorm):
    """PyTorch's, whose gain follows the precision of its input, so that autocast needs no second kernel.

    Args:
        dim: size of the last axis, over which it is taken.
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
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)
