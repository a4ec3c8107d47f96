"""What networks say of their errors, place by place, as one number for every patch of the level map."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def mean_logvar(per_place: Float[Tensor, "b h w"], side: int) -> Float[Tensor, "b lh lw"]:
    """The log of the mean variance over every square of `side` places, in float32 at least."""
    exact = per_place.to(torch.promote_types(per_place.dtype, torch.float32))
    cells = exact.unflatten(2, (-1, side)).unflatten(1, (-1, side))
    return torch.logsumexp(cells, dim=(2, 4)) - 2 * math.log(side)
