"""The parts of a U-Net. Images lie in channels_last memory, where the places that a level map modulates are a view."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from timm.layers import Attention
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from asyncdiff.networks.modulation import Conditioning, Modulation, Places, modulated
from asyncdiff.networks.norms import GroupNorm, RMSNorm
from asyncdiff.shapes import upsampled_to

Features = Float[Tensor, "b c h w"]
Joined = Float[Tensor, "b more h w"]
Outputs = Float[Tensor, "b outputs h w"]


def places(x: Features) -> Places:
    """(b, c, h, w) -> (b, h w, c), pixels in raster order; a view of an image in channels_last memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def pixels(x: Places, size: tuple[int, int]) -> Features:
    """The inverse of `places`: a view in channels_last memory."""
    return x.unflatten(1, size).permute(0, 3, 1, 2)


class PixelNorm(RMSNorm):
    """The channels of every pixel divided by their root mean square: no pixel feels another's level."""

    def forward(self, x: Features) -> Features:
        """`x` normalised, times a gain per channel."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SelfAttention(nn.Module):
    """Attention of every pixel to all, with normalised queries and keys, added to what came in.

    Args:
        channels: of the image; divisible by `heads`.
        heads: attention heads.
        groups: of the normalisation, None for `PixelNorm`.
    """

    def __init__(self, channels: int, heads: int, groups: int | None = None):
        super().__init__()
        self.norm = norm(channels, groups)
        self.attention = Attention(channels, heads, qkv_bias=True, qk_norm=True, norm_layer=RMSNorm)

    def forward(self, x: Features) -> Features:
        """The identity at initialisation."""
        change = self.attention(places(self.norm(x)))
        return x + pixels(change, (x.shape[2], x.shape[3]))


class ResidualBlock(nn.Module):
    """Two convolutions, a shift and scale per pixel between them, added to what came in; then attention, if any.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        features: size of the conditioning's features.
        dropout: before the second convolution.
        groups: of GroupNorm, None for `PixelNorm`.
        heads: of the attention, 0 for none.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        features: int,
        dropout: float = 0.0,
        groups: int | None = None,
        heads: int = 0,
    ):
        super().__init__()
        self.norm1 = norm(inputs, groups)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = norm(outputs, groups)
        self.modulation = Modulation(outputs, 2, features)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        self.attention = SelfAttention(outputs, heads, groups) if heads else nn.Identity()

    def forward(self, x: Features, conditioning: Conditioning, joined: Joined | None = None) -> Outputs:
        """The image after the block, in the precision of `x`; `joined` are more channels of what comes in."""
        if joined is not None:
            x = torch.cat([x, joined], dim=1)
        shift, scale = self.modulation(conditioning)
        # Rounded before the norm, not after it: under autocast nothing in full precision is kept for the backward.
        h = self.conv1(F.silu(self.norm1(x.to(scale.table.dtype))))
        h = modulated(places(self.norm2(h)), shift, scale)
        h = self.conv2(self.dropout(F.silu(pixels(h, (x.shape[2], x.shape[3])))))
        return self.attention(self.skip(x).to(x.dtype) + h)


class Downsample(nn.Module):
    """An image of half the size: the mean of every 2x2 pixels, and a convolution.

    Args:
        channels: before and after.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Features) -> Float[Tensor, "b c h//2 w//2"]:
        """In the precision of `x`."""
        return self.conv(F.avg_pool2d(x, 2)).to(x.dtype)


class Upsample(nn.Module):
    """An image of twice the size: every pixel four times, and a convolution.

    Args:
        channels: before and after.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Features) -> Float[Tensor, "b c 2*h 2*w"]:
        """In the precision of `x`."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest")).to(x.dtype)


class Trunk(nn.Module):
    """From the image to features of every pixel: down to the coarsest level and up again, what came by joined.

    Args:
        channels: channels of the image.
        widths: channels of every level, the finest first.
        features: size of the conditioning's features.
        blocks: residual blocks of every level on the way down, one more on the way up.
        middle_blocks: residual blocks between the two ways.
        heads: attention heads of every level's blocks, and between those of the middle; 0 for no attention.
        dropout: of every level.
        groups: of GroupNorm, None for a norm per pixel.
        checkpointing: compute every block once more in the backward pass.
    """

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        features: int,
        blocks: int,
        middle_blocks: int,
        heads: Sequence[int],
        dropout: Sequence[float],
        groups: int | None,
        checkpointing: bool,
    ):
        super().__init__()
        self.checkpointing = checkpointing
        finer, coarser = [widths[0], *widths[:-1]], [*widths[1:], widths[-1]]
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.halvings = nn.ModuleList(Downsample(width) for width in widths[:-1])
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            options = (width, features, dropout[level], groups, heads[level])
            entering = [finer[level]] + [width] * (blocks - 1)
            self.down.append(nn.ModuleList(ResidualBlock(n, *options) for n in entering))
            entering = [coarser[level] + width] + [2 * width] * (blocks - 1) + [width + finer[level]]
            self.up.append(nn.ModuleList(ResidualBlock(n, *options) for n in entering))
        between = [heads[-1]] * (middle_blocks - 1) + [0]
        self.middle = nn.ModuleList(
            ResidualBlock(widths[-1], widths[-1], features, dropout[-1], groups, n) for n in between
        )
        self.doublings = nn.ModuleList(Upsample(width) for width in widths[1:])
        self.norm = norm(widths[0], groups)

    def forward(self, x: Features, conditionings: list[Conditioning]) -> Outputs:
        """Features after the last norm and nonlinearity; one conditioning for every level."""
        x = self.stem(x).to(x.dtype)
        passed = [x]
        for level, blocks in enumerate(self.down):
            if level:
                x = self.halvings[level - 1](x)
                passed.append(x)
            for block in blocks:  # type: ignore[attr-defined]
                x = self._run(block, x, conditionings[level])
                passed.append(x)
        for block in self.middle:
            x = self._run(block, x, conditionings[-1])
        for level in reversed(range(len(self.up))):
            for block in self.up[level]:  # type: ignore[attr-defined]
                x = self._run(block, x, conditionings[level], passed.pop())
            if level:
                x = self.doublings[level - 1](x)
        return F.silu(self.norm(x))

    def _run(self, block: nn.Module, *args: Any) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *args, use_reentrant=False)
        return block(*args)


def conditioning(
    levels: Float[Tensor, "r dim"],
    index: Int64[Tensor, "b gh gw"],
    label: Float[Tensor, "b dim"] | None,
    size: tuple[int, int],
) -> Conditioning:
    """What modulates the pixels of an image of `size`; one that covers several patches has the mean of their features.

    Shifts and scales are linear in the features: this is the mean of the shifts and scales.
    """
    b, gh, gw = index.shape
    grid = min(gh, size[0]), min(gw, size[1])
    if grid != (gh, gw):
        cells = index.unflatten(2, (grid[1], -1)).unflatten(1, (grid[0], -1)).transpose(2, 3)
        levels = F.embedding_bag(cells.reshape(b * grid[0] * grid[1], -1), levels, mode="mean")
        index = torch.arange(len(levels), device=index.device).view(b, *grid)
    if grid != (1, 1):  # one column stands for all pixels of an image
        index = upsampled_to(index, size)
    return Conditioning(levels, index.flatten(1), label)


def norm(channels: int, groups: int | None) -> nn.Module:
    """GroupNorm of so many groups, or the norm per pixel."""
    return PixelNorm(channels) if groups is None else GroupNorm(groups, channels, eps=1e-6)
