"""Multi-head self-attention, with normalized queries and keys and rotary position embedding as options."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from asyncdiff.devices import constant
from asyncdiff.networks.layers import RMSNorm

Tokens = Float[Tensor, "b m dim"]
Heads = Float[Tensor, "b heads m head_dim"]
Rotations = Float[Tensor, "*of_images m 2 pairs"]  # cosine and sine of the angle of every pair of channels
GridRotations = Float[Tensor, "all_tokens 2 pairs"]  # those of all tokens of a grid

ROPE_BASE = 100.0  # ratio of the highest to about the lowest frequency, as common for images (arXiv:2403.13298)


class Attention(nn.Module):
    """Multi-head self-attention.

    Args:
        dim: number of features of a token; divisible by `heads`.
        heads: number of attention heads.
        qk_norm: whether queries and keys are normalized by their root mean square (arXiv:2302.05442).
        dropout: dropout probability of the output.
    """

    def __init__(self, dim: int, heads: int, qk_norm: bool = False, dropout: float = 0.0):
        super().__init__()
        self.num_heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = RMSNorm(dim // heads) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(dim // heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(dropout)

    def forward(self, x: Tokens, rope: Rotations | None = None) -> Tokens:
        """Return the output for every token.

        Args:
            x: token features.
            rope: rotations of the tokens; None without rotary position embedding.

        Returns:
            The new features.
        """
        return self.output(*self.project(x, rope))

    def project(self, x: Tokens, rope: Rotations | None = None) -> tuple[Heads, Heads, Heads]:
        """Return the tokens' queries and keys, normalized and rotated, and their values."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = rotate(q, rope).to(v.dtype), rotate(k, rope).to(v.dtype)
        return q, k, v

    def output(
        self, q: Heads, k: Float[Tensor, "b heads n head_dim"], v: Float[Tensor, "b heads n head_dim"]
    ) -> Tokens:
        """Return the output for the tokens of the queries `q`, which attend to those of the keys `k`."""
        result = F.scaled_dot_product_attention(q, k, v)
        return self.proj_drop(self.proj(result.transpose(1, 2).flatten(2)))


@constant
def rotations(grid: tuple[int, int], dim: int, device: torch.device) -> GridRotations:
    """Return the rotary position embedding (RoPE, arXiv:2104.09864) of a token grid, in two dimensions.

    Half of the pairs of channels are rotated by the row of the token, half by its column. Frequencies fall from 1 to
    about 1 / `ROPE_BASE` radians per token.

    Args:
        grid: (rows, columns) of tokens.
        dim: number of channels of a head, divisible by 4.
        device: device of the result.

    Returns:
        Cosines and sines for the tokens in raster order.
    """
    count = dim // 4
    exponent = torch.arange(count, dtype=torch.float32, device=device) / count
    frequency = 1.0 / ROPE_BASE**exponent
    rows, columns = (torch.arange(n, dtype=torch.float32, device=device)[:, None] * frequency for n in grid)
    angle = torch.cat([rows[:, None].expand(*grid, count), columns[None].expand(*grid, count)], dim=2).flatten(0, 1)
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def rotate(x: Heads, rope: Rotations) -> Heads:
    """Rotate channels 2 k and 2 k + 1 of every token by its angle k."""
    cos, sin = rope.unbind(-2)
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1).flatten(-2)
