"""Pool predicted log-variances of tokens or pixels to one per patch of the level map."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def mean_logvar(logvar: Float[Tensor, "b h w"], side: int) -> Float[Tensor, "b lh lw"]:
    """Return the log of the mean variance over every square of `side` x `side` values, in at least float32."""
    exact = logvar.to(torch.promote_types(logvar.dtype, torch.float32))
    cells = exact.unflatten(2, (-1, side)).unflatten(1, (-1, side))
    return torch.logsumexp(cells, dim=(2, 4)) - 2 * math.log(side)
