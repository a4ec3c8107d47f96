"""U-Net (DDPM arXiv:2006.11239, ADM arXiv:2105.05233) with spatial FiLM: a shift and scale for every pixel."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from asyncdiff.checks import at_least, within
from asyncdiff.networks.embeddings import LabelEmbedding, LevelEmbedding, check_channels, embed_labels
from asyncdiff.networks.layers import mean_logvar
from asyncdiff.networks.modulation import Conditioning, Modulation, mark_dynamic_sizes
from asyncdiff.networks.parameter_memory import BLOCK, check_parameters
from asyncdiff.networks.unet_blocks import ResidualBlock, SelfAttention, Trunk, pixel_conditioning
from asyncdiff.shapes import Image, IndexedLevels, Labels, Levels, check_grid, indexed, level_map

MAX_LEVELS = 20  # the sides of images are multiples of 2^(levels - 1)
LogVariances = Float[Tensor, "b lh lw"]  # on the network's grid, even if the level map is coarser


class UNet(nn.Module):
    """U-Net with one noise level per patch: predicts the velocity of every pixel.

    The U-Net of DDPM (arXiv:2006.11239) and ADM (arXiv:2105.05233) with spatial FiLM: every pixel gets a shift and
    scale from its own noise level. Use it for small patches of the level map, down to one pixel; `DiT` can do partial
    updates. At a resolution coarser than the level map, a pixel gets the mean of the features of the noise levels that
    it covers.

    The resolutions of a U-Net are called levels, too: in `multipliers`, `blocks`, `attention` and `dropout`, level k
    works at 1 / 2^k of the image's resolution.

    Args:
        channels: number of channels of the image.
        width: base number of channels, multiplied by `multipliers`; the conditioning has four times as many features.
        multipliers: number of channels of every level relative to `width`.
        blocks: number of residual blocks per level on the way down; one more on the way up.
        middle_blocks: number of residual blocks between the way down and the way up, at the coarsest level.
        attention: levels whose blocks are followed by attention.
        middle_attention: whether there is attention between the middle blocks.
        head_dim: number of channels per attention head; must divide the channels of the levels with attention.
        dropout: dropout probability inside residual blocks: one number, or one for every level (the middle blocks use
            the last).
        groups: number of groups of GroupNorm, whose statistics mix all pixels; None normalizes every pixel separately.
        classes: number of class labels, or 0 for an unconditional network; the label `classes` means "no label".
        level_patch_size: side of a patch of the level map in pixels; a multiple or a divisor of 2^(levels - 1).
        uncertainty: whether to also predict the error of the velocity of each patch, see `forward`.
        checkpointing: whether to recompute every block in the backward pass instead of storing its activations.

    Example:
        >>> network = UNet(channels=3, width=8, multipliers=(1, 2), attention=(1,), head_dim=8, level_patch_size=4)
        >>> network.grid((32, 32))
        (8, 8)
        >>> x_t, t = torch.randn(2, 3, 32, 32), torch.rand(2, 8, 8)  # a level for every patch
        >>> network(x_t, t).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(
        self,
        channels: int = 3,
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 2,
        middle_blocks: int = 2,
        attention: Sequence[int] = (1,),
        middle_attention: bool = True,
        head_dim: int = 64,
        dropout: float | Sequence[float] = 0.0,
        groups: int | None = None,
        classes: int = 0,
        level_patch_size: int = 4,
        uncertainty: bool = False,
        checkpointing: bool = False,
    ):
        super().__init__()
        self.channels = channels
        self.width = width
        self.multipliers = tuple(multipliers)
        self.blocks = blocks
        self.middle_blocks = middle_blocks
        self.attention = tuple(attention)
        self.middle_attention = middle_attention
        self.head_dim = head_dim
        self.dropout = tuple(dropout) if isinstance(dropout, Sequence) else dropout
        self.groups = groups
        self.classes = classes
        self.level_patch_size = level_patch_size
        self.uncertainty = uncertainty
        self.checkpointing = checkpointing
        self._check()
        check_parameters(self, self._numbers())

        features, finest = 4 * width, width * self.multipliers[0]
        self.level_embedding = LevelEmbedding(features)
        self.label_embedding = LabelEmbedding(classes, features) if classes else None
        self.trunk = Trunk(
            channels,
            [width * m for m in self.multipliers],
            features,
            blocks,
            middle_blocks,
            self._heads(),
            self._dropouts(),
            groups,
            checkpointing,
        )
        self.head = nn.Conv2d(finest, channels, 3, padding=1)
        self.uncertainty_head = nn.Conv2d(finest, 1, 3, padding=1) if uncertainty else None
        self._compiled = False
        self._initialize()
        self.to(memory_format=torch.channels_last)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile everything except embeddings and heads in place, with the arguments of torch.compile.

        From then on the number of distinct noise levels is padded to a power of two, so that it can change from batch
        to batch without recompilation.
        """
        self._compiled = True
        self.trunk.compile(*args, **kwargs)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the level map's grid (gh, gw) for images of (h, w); raise ValueError if the size does not fit."""
        side = max(self.level_patch_size, self._coarsest)
        if size[0] % side or size[1] % side:
            raise ValueError(
                f"the sides of the image must be multiples of {side}, the larger of level_patch_size "
                f"{self.level_patch_size} and 2^(levels - 1) = {self._coarsest}, got {size[0]}x{size[1]}: "
                "resize or crop the images"
            )
        return size[0] // self.level_patch_size, size[1] // self.level_patch_size

    def forward(self, x_t: Image, t: Levels, label: Labels | None = None) -> Image | tuple[Image, LogVariances]:
        """Predict the velocity of every pixel.

        Args:
            x_t: noisy images, (b, c, h, w).
            t: level map, (b, gh, gw), on the grid of `self.grid` or another one whose patches nest with the pixels of
                all resolutions. The distinct levels of a tensor are found by sorting, those of `IndexedLevels` are
                known.
            label: class of every image; None means "no label".

        Returns:
            The velocity (b, c, h, w); with `uncertainty` also the log-variance of its error (b, lh, lw), the mean over
            the pixels of each patch of the network's level grid.
        """
        check_channels(x_t, self.channels)
        size = (x_t.shape[2], x_t.shape[3])
        self.grid(size)
        levels = level_map(t)
        self._check_map((levels.shape[1], levels.shape[2]), size)
        conditionings = self._condition(indexed(t), size, label)
        # The residual stream keeps the weights' precision under autocast, where convolutions round.
        x = x_t.to(self.head.weight.dtype, memory_format=torch.channels_last)
        if self._compiled:
            mark_dynamic_sizes(x, conditionings)
        features = self.trunk(x, conditionings)
        v = self.head(features).contiguous()
        if self.uncertainty_head is None:
            return v
        return v, mean_logvar(self.uncertainty_head(features).squeeze(1), self.level_patch_size)

    @property
    def _coarsest(self) -> int:
        """Side of a pixel at the coarsest resolution, in pixels of the image."""
        return 2 ** (len(self.multipliers) - 1)

    def _numbers(self) -> dict[str, float]:
        """Return how many parameters there are at least, by the argument that most of them are due to."""
        # Of a block: its second convolution, and the modulation by four times `width` features.
        blocks = [9 * (self.width * m) ** 2 + 8 * self.width**2 * m + BLOCK for m in self.multipliers]
        largest = max(self.multipliers)
        return {
            "width" if self.width >= largest else "multipliers": 3 * sum(blocks),
            "blocks": 2 * (self.blocks - 1) * sum(blocks),
            "middle_blocks": self.middle_blocks * blocks[-1],
            "channels": 18 * self.channels * self.width * self.multipliers[0],
            "classes": 4 * self.classes * self.width,
        }

    def _heads(self) -> list[int]:
        """Return the number of attention heads at every resolution, and in the middle; 0 for no attention."""
        attends = [level in self.attention for level in range(len(self.multipliers))]
        widths = [self.width * m for m in self.multipliers]
        pairs = zip([*widths, widths[-1]], [*attends, self.middle_attention], strict=True)
        return [width // self.head_dim if attends else 0 for width, attends in pairs]

    def _dropouts(self) -> list[float]:
        """Return the dropout probability of every resolution."""
        return list(self.dropout) if isinstance(self.dropout, tuple) else [self.dropout] * len(self.multipliers)

    def _condition(self, t: IndexedLevels, size: tuple[int, int], label: Labels | None) -> list[Conditioning]:
        """Return the conditioning of the pixels of every resolution."""
        if self._compiled:
            t = t.padded()
        levels = F.silu(self.level_embedding(t.values))
        labels = embed_labels(self.label_embedding, label, len(t.index))
        labels = None if labels is None else F.silu(labels)
        sizes = [(size[0] >> level, size[1] >> level) for level in range(len(self.multipliers))]
        conditionings = [pixel_conditioning(levels, t.index, labels, at) for at in sizes]
        return [each.for_device(compiled=self._compiled) for each in conditionings]

    def _initialize(self) -> None:
        """Initialize with Xavier, labels with N(0, 0.02), and the last layer of every branch and head with zeros."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        for layer in self._last_layers():
            nn.init.zeros_(layer.weight)
        if self.label_embedding is not None:
            nn.init.normal_(self.label_embedding.table.weight, std=0.02)

    def _last_layers(self) -> Iterator[nn.Conv2d | nn.Linear]:
        """Yield the last layer of every residual branch, modulation and head."""
        yield from (head for head in (self.head, self.uncertainty_head) if head is not None)
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                yield module.conv2
            elif isinstance(module, SelfAttention):
                yield module.attention.proj
            elif isinstance(module, Modulation):
                yield module.linear

    def _check_map(self, grid: tuple[int, int], size: tuple[int, int]) -> None:
        """Raise ValueError unless, at every resolution, each pixel lies in one patch or covers whole patches."""
        check_grid(grid, size)
        patch = size[0] // grid[0], size[1] // grid[1]
        if not all(_is_nested(side, self._coarsest) for side in patch):
            raise ValueError(
                "the sides of the level map's patches must be divisors or multiples of 2^(levels - 1) = "
                f"{self._coarsest} pixels, got {patch[0]}x{patch[1]}: choose another grid or other multipliers"
            )

    def _check(self) -> None:
        levels = len(self.multipliers)
        at_least("the number of multipliers", levels, 1, "list one multiplier per level", MAX_LEVELS)
        at_least("width", self.width, 1, "use 128, for example")
        at_least("channels", self.channels, 1, "use 3 for color images")
        at_least("classes", self.classes, 0, "use 0 for a network without labels")
        for multiplier in self.multipliers:
            at_least("multipliers", multiplier, 1, "every level needs channels")
        at_least("blocks", self.blocks, 1, "every level needs a block")
        at_least(
            "middle_blocks",
            self.middle_blocks,
            2 if self.middle_attention else 1,
            "middle_attention lies between two blocks: use more blocks or turn it off",
        )
        for level in self.attention:
            within("attention", level, 0, levels - 1, "list levels, 0 is the finest")
        if len(self._dropouts()) != levels:
            raise ValueError(
                f"dropout must be one number or one per level, got {self.dropout} for {levels} levels: "
                f"list {levels} numbers"
            )
        for probability in self._dropouts():
            within("dropout", probability, 0, 1, "it is a probability")
        at_least("level_patch_size", self.level_patch_size, 1, "use 4 pixels, for example")
        if not _is_nested(self.level_patch_size, self._coarsest):
            raise ValueError(
                f"level_patch_size must be a divisor or a multiple of 2^(levels - 1) = {self._coarsest}, "
                f"got {self.level_patch_size}: patches must nest with the pixels of every level"
            )
        self._check_divisors()

    def _check_divisors(self) -> None:
        multipliers_with_attention = [self.multipliers[k] for k in self.attention] + [
            self.multipliers[-1]
        ] * self.middle_attention
        for name, divisor, multipliers in (
            ("head_dim", self.head_dim, multipliers_with_attention),
            ("groups", 1 if self.groups is None else self.groups, self.multipliers),
        ):
            at_least(name, divisor, 1, "use a divisor of the channels")
            for multiplier in multipliers:
                if self.width * multiplier % divisor:
                    raise ValueError(
                        f"{name} must divide the {self.width * multiplier} channels of its level, got {divisor}: "
                        f"change {name}, width or multipliers"
                    )


def _is_nested(patch: int, coarsest: int) -> bool:
    """Return whether patches of this side nest with the pixels of all resolutions; `coarsest` is a power of two."""
    return coarsest % patch == 0 or patch % coarsest == 0
