"""Building blocks of the U-Net. Images are in channels_last memory, so that viewing pixels as tokens copies nothing."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from asyncdiff.networks.attention import Attention
from asyncdiff.networks.layers import GroupNorm, RMSNorm
from asyncdiff.networks.modulation import Conditioning, Modulation, Tokens, modulate
from asyncdiff.shapes import upsampled_to

Features = Float[Tensor, "b c h w"]
Skipped = Float[Tensor, "b more h w"]
Outputs = Float[Tensor, "b outputs h w"]
Resized = Float[Tensor, "b c new_h new_w"]


def pixels_to_tokens(x: Features) -> Tokens:
    """Reshape (b, c, h, w) to (b, h w, c), pixels in raster order; a view of an image in channels_last memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def tokens_to_pixels(x: Tokens, size: tuple[int, int]) -> Features:
    """Invert `pixels_to_tokens`: a view in channels_last memory."""
    return x.unflatten(1, size).permute(0, 3, 1, 2)


class PixelNorm(RMSNorm):
    """RMSNorm over each pixel's channels: unlike with GroupNorm, a pixel does not depend on the levels of others."""

    def forward(self, x: Features) -> Features:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SelfAttention(nn.Module):
    """Residual self-attention of all pixels, with normalized queries and keys.

    Args:
        channels: number of channels; divisible by `heads`.
        heads: number of attention heads.
        groups: number of groups of GroupNorm; None for `PixelNorm`.
    """

    def __init__(self, channels: int, heads: int, groups: int | None = None):
        super().__init__()
        self.norm = make_norm(channels, groups)
        self.attention = Attention(channels, heads, qk_norm=True)

    def forward(self, x: Features) -> Features:
        """Return `x` plus the attention's output, which is zero at initialization."""
        change = self.attention(pixels_to_tokens(self.norm(x)))
        return x + tokens_to_pixels(change, (x.shape[2], x.shape[3]))


class ResidualBlock(nn.Module):
    """Residual block: two convolutions with a shift and scale per pixel in between, optionally followed by attention.

    Args:
        inputs: number of input channels.
        outputs: number of output channels.
        features: size of the conditioning's features.
        dropout: dropout probability before the second convolution.
        groups: number of groups of GroupNorm; None for `PixelNorm`.
        heads: number of attention heads; 0 for no attention.
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
        self.norm1 = make_norm(inputs, groups)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = make_norm(outputs, groups)
        self.modulation = Modulation(outputs, 2, features)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        self.attention = SelfAttention(outputs, heads, groups) if heads else nn.Identity()

    def forward(self, x: Features, conditioning: Conditioning, skipped: Skipped | None = None) -> Outputs:
        """Return the features after the block, in the precision of `x`; `skipped` is the skip connection's input."""
        if skipped is not None:
            x = torch.cat([x, skipped], dim=1)
        shift, scale = self.modulation(conditioning)
        # Rounded before the norm, not after: under autocast no full-precision tensor is stored for the backward pass.
        h = self.conv1(F.silu(self.norm1(x.to(scale.table.dtype))))
        h = modulate(pixels_to_tokens(self.norm2(h)), shift, scale)
        h = self.conv2(self.dropout(F.silu(tokens_to_pixels(h, (x.shape[2], x.shape[3])))))
        return self.attention(self.skip(x).to(x.dtype) + h)


class Resample(nn.Module, ABC):
    """Resizing by a factor of two, followed by a convolution.

    Args:
        channels: number of input and output channels.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    @staticmethod
    @abstractmethod
    def resize(x: Features) -> Resized:
        """Return the resized features."""

    def forward(self, x: Features) -> Resized:
        """Return the resized features after the convolution, in the precision of `x`."""
        return self.conv(self.resize(x)).to(x.dtype)


class Downsample(Resample):
    """Downsampling by two: the mean of every 2x2 pixels, followed by a convolution."""

    @staticmethod
    def resize(x: Features) -> Resized:
        return F.avg_pool2d(x, 2)


class Upsample(Resample):
    """Upsampling by two: nearest neighbor, followed by a convolution."""

    @staticmethod
    def resize(x: Features) -> Resized:
        return F.interpolate(x, scale_factor=2.0, mode="nearest")


class Trunk(nn.Module):
    """U-Net without embeddings and heads: maps images to features of every pixel, with skip connections.

    Here, levels are resolutions, from the finest to the coarsest.

    Args:
        channels: number of channels of the image.
        widths: number of channels of every level.
        features: size of the conditioning's features.
        blocks: number of residual blocks per level on the way down; one more on the way up.
        middle_blocks: number of residual blocks at the coarsest level between the way down and the way up.
        heads: number of attention heads in the blocks of every level, then between the middle blocks; 0 for none.
        dropout: dropout probability of every level.
        groups: number of groups of GroupNorm; None for `PixelNorm`.
        checkpointing: whether to recompute every block in the backward pass instead of storing its activations.
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
        # The names halvings and doublings are keys of saved checkpoints.
        self.halvings = nn.ModuleList(Downsample(width) for width in widths[:-1])
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            options = (width, features, dropout[level], groups, heads[level])
            inputs = [finer[level]] + [width] * (blocks - 1)
            self.down.append(nn.ModuleList(ResidualBlock(n, *options) for n in inputs))
            inputs = [coarser[level] + width] + [2 * width] * (blocks - 1) + [width + finer[level]]
            self.up.append(nn.ModuleList(ResidualBlock(n, *options) for n in inputs))
        middle_heads = [heads[-1]] * (middle_blocks - 1) + [0]
        self.middle = nn.ModuleList(
            ResidualBlock(widths[-1], widths[-1], features, dropout[-1], groups, n) for n in middle_heads
        )
        self.doublings = nn.ModuleList(Upsample(width) for width in widths[1:])
        self.norm = make_norm(widths[0], groups)

    def forward(self, x: Features, conditionings: list[Conditioning]) -> Outputs:
        """Return the features after the last norm and nonlinearity, given one conditioning per level."""
        x = self.stem(x).to(x.dtype)
        skipped = [x]
        for level, blocks in enumerate(self.down):
            if level:
                x = self.halvings[level - 1](x)
                skipped.append(x)
            for block in blocks:  # type: ignore[attr-defined]
                x = self._run(block, x, conditionings[level])
                skipped.append(x)
        for block in self.middle:
            x = self._run(block, x, conditionings[-1])
        for level in reversed(range(len(self.up))):
            for block in self.up[level]:  # type: ignore[attr-defined]
                x = self._run(block, x, conditionings[level], skipped.pop())
            if level:
                x = self.doublings[level - 1](x)
        return F.silu(self.norm(x))

    def _run(self, block: nn.Module, *args: Any) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *args, use_reentrant=False)
        return block(*args)


def pixel_conditioning(
    levels: Float[Tensor, "r dim"],
    index: Int64[Tensor, "b gh gw"],
    label: Float[Tensor, "b dim"] | None,
    size: tuple[int, int],
) -> Conditioning:
    """Return the conditioning of the pixels at one resolution.

    A pixel that covers several patches gets the mean of their features. Shifts and scales are linear in the features,
    so it also gets the mean of their shifts and scales.

    Args:
        levels: features of the r distinct levels, after the nonlinearity.
        index: row of `levels` for every patch of the level map.
        label: features of every image's label, after the nonlinearity; None without labels.
        size: (h, w) of the image at this resolution.

    Returns:
        The conditioning of h w pixels, or of a single one if all pixels of an image share a level.
    """
    b, gh, gw = index.shape
    grid = min(gh, size[0]), min(gw, size[1])
    if grid != (gh, gw):
        cells = index.unflatten(2, (grid[1], -1)).unflatten(1, (grid[0], -1)).transpose(2, 3)
        levels = F.embedding_bag(cells.reshape(b * grid[0] * grid[1], -1), levels, mode="mean")
        index = torch.arange(len(levels), device=index.device).view(b, *grid)
    if grid != (1, 1):  # for a 1x1 grid one column serves all pixels of an image
        index = upsampled_to(index, size)
    return Conditioning(levels, index.flatten(1), label)


def make_norm(channels: int, groups: int | None) -> nn.Module:
    """Return GroupNorm with `groups` groups, or `PixelNorm` if `groups` is None."""
    return PixelNorm(channels) if groups is None else GroupNorm(groups, channels, eps=1e-6)
