"""Layers that DiT and U-Net share: normalization, the MLP of a block, and the pooling of log-variances.

Normalization returns the precision of its input. On CUDA, autocast would make it return float32, which would then be
stored for the backward pass.
"""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Tokens = Float[Tensor, "b n dim"]


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
        with without_autocast(x.device):
            return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class GroupNorm(nn.GroupNorm):
    """PyTorch's GroupNorm in the precision of the input."""

    def forward(self, x: Tensor) -> Tensor:
        with without_autocast(x.device):
            return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class MLP(nn.Module):
    """Two-layer network of every token, with the tanh approximation of GELU as in DiT.

    Args:
        dim: number of features of a token.
        hidden: number of hidden features.
        dropout: dropout probability after each layer.
    """

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU(approximate="tanh")
        self.fc2 = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tokens) -> Tokens:
        """Return the new features of every token."""
        return self.dropout(self.fc2(self.dropout(self.act(self.fc1(x)))))


def mean_logvar(logvar: Float[Tensor, "b h w"], side: int) -> Float[Tensor, "b lh lw"]:
    """Return the log of the mean variance over every square of `side` x `side` values, in at least float32."""
    exact = logvar.to(torch.promote_types(logvar.dtype, torch.float32))
    cells = exact.unflatten(2, (-1, side)).unflatten(1, (-1, side))
    return torch.logsumexp(cells, dim=(2, 4)) - 2 * math.log(side)


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Disable autocast if it is enabled; the meta device, on which operations are counted, has none."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
