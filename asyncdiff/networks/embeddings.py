"""Embeddings of noise levels, token positions and class labels."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from asyncdiff.devices import constant
from asyncdiff.shapes import Image, Labels

LEVEL_SCALE = 1000.0  # levels in [0, 1] are embedded like the 1000 integer steps of DDPM and DiT
MAX_PERIOD = 10_000.0  # longest period of the sinusoids (Vaswani et al., arXiv:1706.03762)


@constant
def frequencies(
    count: int, max_period: float, dtype: torch.dtype, device: torch.device
) -> Float[Tensor, " frequencies"]:
    """Return geometric frequencies from 1 to about 1 / max_period."""
    return torch.exp(-math.log(max_period) / count * torch.arange(count, device=device, dtype=dtype))


def sinusoids(position: Float[Tensor, " n"], dim: int, max_period: float = MAX_PERIOD) -> Float[Tensor, "n dim"]:
    """Return cosines and sines of `position` at dim/2 geometric frequencies from 1 to about 1 / max_period."""
    angle = position[:, None] * frequencies(dim // 2, max_period, position.dtype, position.device)
    return torch.cat([angle.cos(), angle.sin()], dim=1)


@constant
def grid_positions(grid: tuple[int, int], dim: int, device: torch.device) -> Float[Tensor, "n dim"]:
    """Return fixed embeddings of a token grid in raster order; half of the channels encode the row, half the column."""
    rows, columns = (sinusoids(torch.arange(n, device=device, dtype=torch.float32), dim // 2) for n in grid)
    by_row = rows[:, None].expand(*grid, dim // 2)
    by_column = columns[None].expand(*grid, dim // 2)
    return torch.cat([by_row, by_column], dim=2).reshape(grid[0] * grid[1], dim)


class LevelEmbedding(nn.Module):
    """Embedding of noise levels in [0, 1] as `dim` features: sinusoids in float32 and a two-layer MLP, as in DiT.

    Args:
        dim: number of features.
        frequencies: number of sinusoids.
        scale: factor applied to levels before the sinusoids.
        max_period: longest period of the sinusoids.
    """

    def __init__(self, dim: int, frequencies: int = 256, scale: float = LEVEL_SCALE, max_period: float = MAX_PERIOD):
        super().__init__()
        self.frequencies = frequencies
        self.scale = scale
        self.max_period = max_period
        self.first = nn.Linear(frequencies, dim)
        self.second = nn.Linear(dim, dim)

    def forward(self, levels: Float[Tensor, " r"]) -> Float[Tensor, "r dim"]:
        """Return one feature vector per level."""
        exact = levels.to(torch.promote_types(levels.dtype, torch.float32))
        waves = sinusoids(self.scale * exact, self.frequencies, self.max_period)
        return self.second(F.silu(self.first(waves.to(self.first.weight.dtype))))


class LabelEmbedding(nn.Module):
    """Embedding of class labels 0 .. classes - 1 as `dim` features; the label `classes` is the null class ("no label").

    Args:
        classes: number of classes, without the null class.
        dim: number of features.
    """

    def __init__(self, classes: int, dim: int):
        super().__init__()
        self.classes = classes
        self.table = nn.Embedding(classes + 1, dim)

    def forward(self, label: Labels) -> Float[Tensor, "b dim"]:
        """Return one feature vector per image."""
        return self.table(label)


def embed_labels(embedding: LabelEmbedding | None, label: Labels | None, batch: int) -> Float[Tensor, "b dim"] | None:
    """Return one feature vector per image, that of the null class without labels; None for a network without classes.

    Raises:
        ValueError: a network without classes got labels.
    """
    if embedding is None:
        if label is not None:
            raise ValueError(
                "label must be None for a network without classes, got labels for classes=0: set network.classes, or "
                "omit the labels"
            )
        return None
    return embedding(
        torch.full((batch,), embedding.classes, device=embedding.table.weight.device) if label is None else label
    )


def check_channels(x_t: Image, channels: int) -> None:
    """Raise ValueError unless the images have this number of channels."""
    if x_t.shape[1] != channels:
        raise ValueError(f"images must have {channels} channels, got {x_t.shape[1]}: set network.channels to match")
