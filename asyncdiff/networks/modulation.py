"""Shift, scale and gate of every place from a level map, at the cost of scalar conditioning.

A modulation depends on a place through its level alone. It is computed once per distinct level, and what is gathered
from that table is made again in the backward pass: nothing with `count` vectors per place is ever kept. Both are exact.

Labels would multiply the distinct conditionings by the classes. They enter after the nonlinearity instead,
silu(level) + silu(label), as one more row per image; or before it, silu(level + label) as in DiT, at one row per level
of every image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from asyncdiff.shapes import UniqueLevels

Places = Float[Tensor, "b n dim"]


@dataclass(frozen=True)
class Conditioning:
    """What modulates a batch of places: tokens, or pixels of some resolution.

    Attributes:
        levels: features of the r distinct conditionings, after the nonlinearity.
        index: which of them each place has; one column where all places of an image share theirs.
        label: features of each image's label, after the nonlinearity; None where there are none, or `levels` has them.
    """

    levels: Float[Tensor, "r dim"]
    index: Int64[Tensor, "b n"]
    label: Float[Tensor, "b dim"] | None

    def at(self, places: Int64[Tensor, "b m"]) -> "Conditioning":
        """Of some places."""
        return self if self.index.shape[1] == 1 else replace(self, index=self.index.gather(1, places))


@dataclass(frozen=True)
class Rows:
    """One vector per place, as the table of its distinct values.

    Attributes:
        table: the values of the r distinct conditionings.
        index: which of them each place has; one column where all places of an image share theirs.
        label: what the label adds to all places of its image, None for nothing.
    """

    table: Float[Tensor, "r dim"]
    index: Int64[Tensor, "b n"]
    label: Float[Tensor, "b dim"] | None

    @property
    def shared(self) -> bool:
        """Whether all places of an image have the same vector."""
        return self.index.shape[1] == 1

    def gathered(self) -> Places:
        """The vectors of all places, one column where they are shared."""
        return _gathered(self.table, self.index, self.label)


class Modulation(nn.Module):
    """`count` vectors of size `dim` per place, linear in the conditioning, zero at initialisation (adaLN-zero, DiT).

    Args:
        dim: size of the vectors.
        count: number of vectors.
        features: size of the conditioning's features; `dim` by default.
    """

    def __init__(self, dim: int, count: int, features: int | None = None):
        super().__init__()
        self.count = count
        self.linear = nn.Linear(features or dim, count * dim)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, conditioning: Conditioning) -> tuple[Rows, ...]:
        """`count` vectors per place."""
        tables = self.linear(conditioning.levels).chunk(self.count, dim=1)
        labels: tuple[Tensor | None, ...] = (None,) * self.count
        if conditioning.label is not None:
            labels = nn.functional.linear(conditioning.label, self.linear.weight).chunk(self.count, dim=1)
        return tuple(Rows(t, conditioning.index, y) for t, y in zip(tables, labels, strict=True))


def modulated(x: Places, shift: Rows, scale: Rows) -> Places:
    """x (1 + scale) + shift, in the precision of the modulation: what autocast would round to in the next product.

    `x` is rounded to it first, so that nothing in full precision is kept for the backward.
    """
    x = x.to(scale.table.dtype)
    if scale.shared:
        return x * (1 + scale.gathered()) + shift.gathered()
    result: Tensor = _Modulate.apply(x, shift.table, scale.table, shift.label, scale.label, scale.index)
    return result


def gated(x: Places, gate: Rows, change: Places) -> Places:
    """x + gate change, in the precision of `x`."""
    if gate.shared:
        return x + gate.gathered() * change
    result: Tensor = _Gate.apply(x, gate.table, gate.label, change, gate.index)
    return result


def mark_varying(x: Tensor, conditionings: Sequence[Conditioning]) -> None:
    """Tell what is compiled for these which sizes vary, or it would be compiled for each and soon no more.

    The number of levels does, and, but for training, the number of images, `x`'s first axis.
    """
    varying = [each.levels for each in conditionings]
    if not torch.is_grad_enabled():
        varying += [x, *(each.index for each in conditionings)]
        varying += [each.label for each in conditionings if each.label is not None]
    for tensor in varying:
        torch._dynamo.maybe_mark_dynamic(tensor, 0)


def check_map(grid: tuple[int, int], tokens: tuple[int, int]) -> None:
    """Raise ValueError unless a level map of `grid` gives every token one level."""
    if tokens[0] % grid[0] or tokens[1] % grid[1]:
        raise ValueError(
            f"the level map's grid must divide the token grid {tokens[0]}x{tokens[1]}, got {grid[0]}x{grid[1]}: "
            "give one level per token or per block of tokens"
        )


def token_index(unique: UniqueLevels, tokens: tuple[int, int]) -> Int64[Tensor, "b n"]:
    """The level index of every token in raster order, from a level map as coarse as the token grid or coarser."""
    b, gh, gw = unique.index.shape
    check_map((gh, gw), tokens)
    if gh == gw == 1:
        return unique.index.reshape(b, 1)
    cells = unique.index[:, :, None, :, None].expand(b, gh, tokens[0] // gh, gw, tokens[1] // gw)
    return cells.reshape(b, tokens[0] * tokens[1])


class _Modulate(torch.autograd.Function):
    """y = x (1 + scale) + shift, which keeps x, the tables and the index, and gathers once more in the backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        shift: Tensor,
        scale: Tensor,
        label_shift: Tensor | None,
        label_scale: Tensor | None,
        index: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, scale, label_scale, index)
        factor = _gathered(scale, index, label_scale).add_(1)
        return torch.addcmul(_gathered(shift, index, label_shift), x, factor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, label_scale, index = ctx.saved_tensors
        (grad,) = grads
        grad_x = (_gathered(scale, index, label_scale).add_(1) * grad).to(x.dtype)
        grad_shift, by_image_shift = _scattered(grad, scale, label_scale, index)
        grad_scale, by_image_scale = _scattered(grad * x, scale, label_scale, index)
        return grad_x, grad_shift, grad_scale, by_image_shift, by_image_scale, None


class _Gate(torch.autograd.Function):
    """y = x + gate change, which keeps the change, the table and the index."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, label: Tensor | None, change: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(gate, label, change, index)
        return torch.addcmul(x, _gathered(gate, index, label), change)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate, label, change, index = ctx.saved_tensors
        (grad,) = grads
        rounded = grad.to(change.dtype)  # as autocast would for the product that made the change
        grad_change = (_gathered(gate, index, label) * rounded).to(change.dtype)
        grad_gate, by_image = _scattered(rounded * change, gate, label, index)
        return grad, grad_gate, by_image, grad_change, None


def _gathered(table: Tensor, index: Tensor, label: Tensor | None) -> Tensor:
    """(b, n, dim): the table's rows at `index`, and the label's row of each image."""
    rows = table.index_select(0, index.flatten()).view(*index.shape, table.shape[1])
    return rows if label is None else rows.add_(label[:, None])


def _scattered(grad: Tensor, table: Tensor, label: Tensor | None, index: Tensor) -> tuple[Tensor, Tensor | None]:
    """The gradients of the table and of the label's rows: sums over the places that have them, in float32 at least."""
    exact = grad.to(torch.promote_types(grad.dtype, torch.float32))
    dim = table.shape[1]
    rows = index.reshape(-1, 1).expand(-1, dim)
    sums = torch.zeros(table.shape, dtype=exact.dtype, device=exact.device).scatter_add_(
        0, rows, exact.reshape(-1, dim)
    )
    return sums.to(table.dtype), None if label is None else exact.sum(1).to(label.dtype)
