"""Scale, shift and gate of every token from a level map, the cheap way.

A modulation depends on a token through its level alone. It is therefore computed once per distinct level and gathered,
which is exact and costs as much as scalar conditioning. Labels would multiply the distinct conditionings by the
classes; they enter after the nonlinearity instead, silu(level) + silu(label), as one more row per image.
"""

from dataclasses import dataclass, replace

import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from asyncdiff.shapes import Distinct


@dataclass(frozen=True)
class Conditioning:
    """What modulates a batch of tokens.

    Attributes:
        levels: features of the r distinct levels, after the nonlinearity.
        index: which level each token has; one column where all tokens of an image share theirs.
        label: features of each image's label, after the nonlinearity; None without labels.
    """

    levels: Float[Tensor, "r dim"]
    index: Int64[Tensor, "b n"]
    label: Float[Tensor, "b dim"] | None

    def at(self, places: Int64[Tensor, "b m"]) -> "Conditioning":
        """Of some tokens."""
        return self if self.index.shape[1] == 1 else replace(self, index=self.index.gather(1, places))


class Modulation(nn.Module):
    """`count` vectors of size `dim` per token, linear in the conditioning, zero at initialisation (adaLN-zero, DiT)."""

    def __init__(self, dim: int, count: int):
        super().__init__()
        self.count = count
        self.linear = nn.Linear(dim, count * dim)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, conditioning: Conditioning) -> tuple[Tensor, ...]:
        """`count` tensors of shape (b, n, dim), or (b, 1, dim) where all tokens of an image share their level."""
        rows = F.embedding(conditioning.index, self.linear(conditioning.levels))
        if conditioning.label is not None:
            rows = rows + F.linear(conditioning.label, self.linear.weight)[:, None]
        return rows.chunk(self.count, dim=2)


def token_index(distinct: Distinct, tokens: tuple[int, int]) -> Int64[Tensor, "b n"]:
    """The level index of every token in raster order, from a level map as coarse as the token grid or coarser."""
    b, gh, gw = distinct.index.shape
    if tokens[0] % gh or tokens[1] % gw:
        raise ValueError(
            f"the level map's grid must divide the token grid {tokens[0]}x{tokens[1]}, got {gh}x{gw}: "
            "give one level per token or per block of tokens"
        )
    if gh == gw == 1:
        return distinct.index.reshape(b, 1)
    cells = distinct.index[:, :, None, :, None].expand(b, gh, tokens[0] // gh, gw, tokens[1] // gw)
    return cells.reshape(b, tokens[0] * tokens[1])
