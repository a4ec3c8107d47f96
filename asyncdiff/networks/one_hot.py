"""Gather vectors from a table and sum gradients by its rows as matrix products, which is what GPUs are fast at.

On a GPU, `scatter_add_` of many vectors onto few rows is slow, in an order that changes from run to run, and a gather
and the sum with a label's vector are two passes over all tokens. Products with a one-hot matrix of every token's row
do both in one pass, and are deterministic. Vectors are exact; gradients are rounded like those of all weights.
"""

import math
from contextlib import nullcontext

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from asyncdiff.precision import full_float32

OneHot = Float[Tensor, "groups m columns"]  # m tokens of a group of images, see `one_hot_matrix`
Tokens = Float[Tensor, "b n dim"]

MAX_ROWS = 512  # above, products cost more than they save, by estimate
MAX_IMAGES = 64  # images of a group, whose labels have columns of their own
ALIGNMENT = 8  # columns of 16 bits that tensor cores read at once


def gathers_by_product(one_hot: OneHot) -> bool:
    """Return whether a product gathers faster: in 16 bits, unless the compiler fuses the gather with what follows."""
    return one_hot.dtype.itemsize == 2 and not torch.compiler.is_compiling()


def one_hot_matrix(
    index: Int64[Tensor, "b n"], rows: int, dtype: torch.dtype, *, labeled: bool = False, per_image: bool = False
) -> OneHot:
    """Return the one-hot matrix of every token's row of a table, and with labels of its image.

    Every image that has a column makes all products larger. Labels of up to `MAX_IMAGES` images share a matrix.

    Args:
        index: row of every token.
        rows: number of rows of the table.
        dtype: floating type of the vectors.
        labeled: whether every image's label has a vector, too.
        per_image: whether every image has a table of its own.

    Returns:
        The matrix of every group of images: a single group without labels, one per image with `per_image`. Its columns
        are the rows of the table, then the images of the group if they are labeled, then a column of ones, then at
        least one of zeros.
    """
    b, n = index.shape
    images = 1 if per_image else b
    if labeled:
        images = max(k for k in range(1, MAX_IMAGES + 1) if b % k == 0)
    index = index.view(-1, images, n)
    used = rows + images * labeled + 1
    ones = [index, torch.full_like(index, used - 1)]
    if labeled:
        ones.append((rows + torch.arange(images, device=index.device))[:, None].expand_as(index))
    columns = ALIGNMENT * math.ceil((used + 1) / ALIGNMENT)
    matrix = torch.zeros(len(index), images * n, columns, dtype=dtype, device=index.device)
    return matrix.scatter_(2, torch.stack(ones, 3).flatten(1, 2), 1)


def gather(
    one_hot: OneHot, table: Float[Tensor, "r dim"], label: Float[Tensor, "b dim"] | None, plus: int
) -> Float[Tensor, "groups m dim"]:
    """Return the table's vector of every token, plus the vector of its image's label, plus `plus` (0 or 1)."""
    groups, _, columns = one_hot.shape
    if label is None:
        parts = [table.unflatten(0, (groups, -1))]
    else:
        parts = [table.expand(groups, -1, -1), label.unflatten(0, (groups, -1))]
    used = sum(part.shape[1] for part in parts)
    # All tokens end with 1, 0, ..., 0: so do the vectors of these columns, or they are 0, without a kernel.
    ends = one_hot[:, :1, used:].mT
    parts.append((ends if plus else ends[:, -1:]).expand(-1, columns - used, table.shape[1]))
    return one_hot @ torch.cat(parts, 1)


def sum_by_row(grad: Tokens, one_hot: OneHot, table: Float[Tensor, "r dim"], labeled: bool) -> Float[Tensor, "r dim"]:
    """Return the gradient of the table: the sums of the tokens' gradients by row, accumulated in float32."""
    tables = 1 if labeled else len(one_hot)  # with labels, all groups share the table
    matrix = one_hot.view(tables, -1, one_hot.shape[2])[:, :, : len(table) // tables]
    rounds = grad.dtype == torch.float32 and not torch.compiler.is_compiling()
    with full_float32(grad.device) if rounds else nullcontext():
        return (matrix.mT @ grad.reshape(tables, -1, grad.shape[2])).view(table.shape)
