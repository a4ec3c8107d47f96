"""Modulation: shift, scale and gate per token from a level map, at the cost of scalar conditioning.

Tokens here are the tokens of a DiT, or the pixels of a U-Net at one resolution.

The modulation of a token depends only on its level. It is computed once per distinct level and gathered from that
table; the gathered vectors are recomputed in the backward pass, so that the `count` vectors per token are never stored.
Both are exact.

On GPUs, vectors are gathered and gradients summed by products with a one-hot matrix, see `one_hot`. Where all tokens of
an image share a level, the features of level and label are summed before all blocks, as in standard adaLN.

Labels would multiply the number of distinct conditionings by the number of classes. They are therefore added after the
nonlinearity, silu(level) + silu(label), as one more vector per image; or before it, silu(level + label) as in DiT, with
one vector per level of every image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from asyncdiff.networks.layers import without_autocast
from asyncdiff.networks.one_hot import (
    MAX_ROWS,
    OneHot,
    gather,
    gathers_by_product,
    one_hot_matrix,
    sum_by_row,
)
from asyncdiff.shapes import IndexedLevels

Tokens = Float[Tensor, "b n dim"]  # tokens of a DiT, or pixels of a U-Net


@dataclass(frozen=True)
class Conditioning:
    """Conditioning of a batch of tokens by their levels and labels, as a table of distinct conditionings.

    Attributes:
        levels: features of the r distinct conditionings, after the nonlinearity.
        index: row of `levels` for every token; a single column if all tokens of an image share it; None if row i is
            that of all tokens of image i.
        label: features of every image's label, after the nonlinearity; None without labels, or if `levels` includes
            them.
        one_hot: one-hot matrix of `index`, on GPUs; see `for_device`.
    """

    levels: Float[Tensor, "r dim"]
    index: Int64[Tensor, "b n"] | None
    label: Float[Tensor, "b dim"] | None
    one_hot: OneHot | None = None

    def gather(self, tokens: Int64[Tensor, "b m"]) -> "Conditioning":
        """Return the conditioning of the tokens with these indices."""
        if self.index is None or self.index.shape[1] == 1:
            return self
        return replace(self, index=self.index.gather(1, tokens), one_hot=None)

    def for_device(self, *, per_image: bool = False, compiled: bool = False) -> "Conditioning":
        """Return the same conditioning in the form that is fastest on its device.

        Args:
            per_image: whether every image has rows of `levels` of its own, the same number for all.
            compiled: whether the blocks of the network are compiled.
        """
        if self.index is None or not few_passes(self.levels.device):
            return self
        b, n = self.index.shape
        if n == 1:
            # The gradient of an embedding is summed in the same order every time, unlike that of indexing.
            levels = nn.functional.embedding(self.index[:, 0], self.levels)
            return Conditioning(levels if self.label is None else levels + self.label, None, None)
        rows = len(self.levels) // b if per_image else len(self.levels)
        dtype = _product_dtype(self.levels)
        half, grad = dtype.itemsize == 2, torch.is_grad_enabled()
        # Compiled code gathers faster by itself, and float32 products are slow: there, products only sum gradients.
        if rows > MAX_ROWS or not (half or not compiled if grad else half and not compiled):
            return self
        options = {"labeled": self.label is not None, "per_image": per_image}
        index = self.index % rows if per_image else self.index
        return replace(self, one_hot=one_hot_matrix(index, rows, dtype, **options))


@dataclass(frozen=True)
class IndexedVectors:
    """One vector per token, stored as a table of distinct vectors and an index.

    Attributes:
        table: vectors of the r distinct conditionings.
        index: row of `table` for every token; a single column if all tokens of an image share it; None if row i is
            that of all tokens of image i.
        label: vector that each image's label adds to all of its tokens; None if labels add nothing.
        one_hot: one-hot matrix of `index`, on GPUs.
    """

    table: Float[Tensor, "r dim"]
    index: Int64[Tensor, "b n"] | None
    label: Float[Tensor, "b dim"] | None
    one_hot: OneHot | None = None

    @property
    def shared(self) -> bool:
        """Whether all tokens of an image have the same vector."""
        return self.index is None or self.index.shape[1] == 1

    def gather(self) -> Tokens:
        """Return the vectors of all tokens, as a single column if they are shared."""
        return self.table[:, None] if self.index is None else _gather(self.table, self.index, self.label, None)


class Modulation(nn.Module):
    """Linear layer from the conditioning to `count` vectors of size `dim` per token, initialized to zero (adaLN-zero).

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

    def forward(self, conditioning: Conditioning) -> tuple[IndexedVectors, ...]:
        """Return `count` vectors per token."""
        tables = self.linear(conditioning.levels).chunk(self.count, dim=1)
        labels: tuple[Tensor | None, ...] = (None,) * self.count
        if conditioning.label is not None:
            labels = nn.functional.linear(conditioning.label, self.linear.weight).chunk(self.count, dim=1)
        index, one_hot = conditioning.index, conditioning.one_hot
        return tuple(IndexedVectors(t, index, y, one_hot) for t, y in zip(tables, labels, strict=True))


def modulate(x: Tokens, shift: IndexedVectors, scale: IndexedVectors) -> Tokens:
    """Return x (1 + scale) + shift, in the precision of the modulation.

    Autocast would round to this precision anyway, for the next matrix product. `x` is rounded to it first, so that
    nothing in full precision is stored for the backward pass.
    """
    x = x.to(scale.table.dtype)
    if scale.shared:
        return x * (1 + scale.gather()) + shift.gather()
    tables = shift.table, scale.table, shift.label, scale.label
    result: Tensor = _Modulate.apply(x, *tables, scale.index, scale.one_hot)
    return result


def add_gated(x: Tokens, gate: IndexedVectors, change: Tokens) -> Tokens:
    """Return x + gate change, in the precision of `x`."""
    if gate.shared:
        return x + gate.gather() * change
    result: Tensor = _Gate.apply(x, gate.table, gate.label, change, gate.index, gate.one_hot)
    return result


def mark_dynamic_sizes(x: Tensor, conditionings: Sequence[Conditioning]) -> None:
    """Mark dynamic sizes for torch.compile, which would otherwise recompile for each and soon give up.

    These are the number of levels and, except in training, the number of images (the first axis of `x`).
    """
    dynamic = [each.levels for each in conditionings]
    if not torch.is_grad_enabled():
        dynamic += [x, *(each.index for each in conditionings if each.index is not None)]
        dynamic += [each.label for each in conditionings if each.label is not None]
    for tensor in dynamic:
        torch._dynamo.maybe_mark_dynamic(tensor, 0)
    for each in conditionings:
        if each.one_hot is not None:
            torch._dynamo.maybe_mark_dynamic(each.one_hot, 2)


def few_passes(device: torch.device) -> bool:
    """Return whether to save kernels and passes over memory: on a GPU. CPUs keep the order of their sums."""
    return device.type == "cuda"


def token_index(levels: IndexedLevels, tokens: tuple[int, int]) -> Int64[Tensor, "b n"]:
    """Return the level index of every token in raster order, from a level map on the token grid or a coarser one."""
    b, gh, gw = levels.index.shape
    if tokens[0] % gh or tokens[1] % gw:
        raise ValueError(
            f"the level map's grid must divide the token grid {tokens[0]}x{tokens[1]}, got {gh}x{gw}: "
            "use one level per token or per block of tokens"
        )
    if gh == gw == 1:
        return levels.index.reshape(b, 1)
    cells = levels.index[:, :, None, :, None].expand(b, gh, tokens[0] // gh, gw, tokens[1] // gw)
    return cells.reshape(b, tokens[0] * tokens[1])


class _Modulate(torch.autograd.Function):
    """y = x (1 + scale) + shift; stores only x, the tables and the index, and gathers again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        shift: Tensor,
        scale: Tensor,
        label_shift: Tensor | None,
        label_scale: Tensor | None,
        index: Tensor,
        one_hot: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(x, scale, label_scale, index, one_hot)
        with without_autocast(x.device):
            factor = _gather(scale, index, label_scale, one_hot, plus=1)
            return torch.addcmul(_gather(shift, index, label_shift, one_hot), x, factor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, label_scale, index, one_hot = ctx.saved_tensors
        (grad,) = grads
        with without_autocast(x.device):
            grad_x = _gather(scale, index, label_scale, one_hot, plus=1).mul_(grad).to(x.dtype)
            grad_shift, by_image_shift = _sums(grad, scale, label_scale, index, one_hot)
            grad_scale, by_image_scale = _sums(grad * x, scale, label_scale, index, one_hot)
        return grad_x, grad_shift, grad_scale, by_image_shift, by_image_scale, None, None


class _Gate(torch.autograd.Function):
    """y = x + gate change; stores only the change, the table and the index."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gate: Tensor,
        label: Tensor | None,
        change: Tensor,
        index: Tensor,
        one_hot: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(gate, label, change, index, one_hot)
        with without_autocast(x.device):  # which would make copies in the precision of x
            return torch.addcmul(x, _gather(gate, index, label, one_hot), change)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate, label, change, index, one_hot = ctx.saved_tensors
        (grad,) = grads
        with without_autocast(grad.device):
            rounded = grad.to(change.dtype)  # as autocast would for the product that computed the change
            grad_change = (_gather(gate, index, label, one_hot) * rounded).to(change.dtype)
            grad_gate, by_image = _sums(rounded * change, gate, label, index, one_hot)
        return grad, grad_gate, by_image, grad_change, None, None


def _gather(table: Tensor, index: Tensor, label: Tensor | None, one_hot: Tensor | None, plus: int = 0) -> Tensor:
    """Return the table's vectors at `index`, plus the vector of each image's label, plus `plus`: (b, n, dim)."""
    shape = (*index.shape, table.shape[1])
    if one_hot is not None and one_hot.dtype == table.dtype and gathers_by_product(one_hot):
        return gather(one_hot, table, label, plus).view(shape)
    vectors = table.index_select(0, index.flatten()).view(shape)
    if label is not None:
        vectors = vectors.add_(label[:, None])
    return vectors.add_(plus) if plus else vectors


def _sums(
    grad: Tensor, table: Tensor, label: Tensor | None, index: Tensor, one_hot: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of the table and the label vectors: sums over their tokens, in at least float32."""
    if one_hot is not None and one_hot.dtype == grad.dtype:
        by_row = sum_by_row(grad, one_hot, table, label is not None)
        return by_row, None if label is None else grad.sum(1).to(label.dtype)  # without a copy in float32
    exact, dim = grad.to(torch.promote_types(grad.dtype, torch.float32)), table.shape[1]
    rows = index.reshape(-1, 1).expand(-1, dim)
    sums = torch.zeros(table.shape, dtype=exact.dtype, device=exact.device).scatter_add_(
        0, rows, exact.reshape(-1, dim)
    )
    return sums.to(table.dtype), None if label is None else exact.sum(1).to(label.dtype)


def _product_dtype(x: Tensor) -> torch.dtype:
    """Return the type of the product of `x` with weights."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
