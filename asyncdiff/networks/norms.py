"""Normalization layers that return the precision of their input.

On CUDA, autocast would make them return float32, which would then be stored for the backward pass.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """PyTorch's RMSNorm in the precision of the input; sums are still accumulated in float32.

    Args:
        dim: size of the last axis, over which the root mean square is taken.
        eps: number added to the mean square.
        device: device of the gain.
        dtype: floating type of the gain.
    """

    def __init__(
        self, dim: int, eps: float = 1e-6, device: torch.device | None = None, dtype: torch.dtype | None = None
    ):
        super().__init__(dim, eps=eps, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        with _without_autocast(x.device):
            return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class GroupNorm(nn.GroupNorm):
    """PyTorch's GroupNorm in the precision of the input."""

    def forward(self, x: Tensor) -> Tensor:
        with _without_autocast(x.device):
            return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


def _without_autocast(device: torch.device) -> AbstractContextManager:
    """Disable autocast; the meta device, on which operations are counted, has none."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
