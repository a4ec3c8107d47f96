"""U-Net (DDPM arXiv:2006.11239, ADM arXiv:2105.05233) with spatial FiLM: a shift and scale for every pixel."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from asyncdiff.checks import at_least, within
from asyncdiff.networks.embeddings import LabelEmbedding, LevelEmbedding, refuse_label
from asyncdiff.networks.logvar_pooling import mean_logvar
from asyncdiff.networks.modulation import Conditioning, Modulation, mark_varying
from asyncdiff.networks.unet_blocks import ResidualBlock, SelfAttention, Trunk, conditioning
from asyncdiff.shapes import Image, Labels, LevelMap, UniqueLevels, check_grid, unique_levels

LogVariances = Float[Tensor, "b lh lw"]  # the network's grid, also where its level map is coarser


class UNet(nn.Module):
    """Velocity of every pixel from a noisy image and the level of every patch.

    Level k works at 1 / 2^k of the image's resolution. Patches of the level map may be as small as a pixel: at a
    resolution coarser than the map, a pixel has the mean of the features of the levels that it covers.

    Args:
        channels: channels of the image.
        width: base number of channels, multiplied by `multipliers`; the conditioning has four times as many features.
        multipliers: channels of every level relative to `width`, the finest level first.
        blocks: residual blocks of every level on the way down, one more on the way up.
        middle_blocks: residual blocks between the two ways, at the coarsest resolution.
        attention: levels whose blocks are followed by attention, 0 the finest.
        middle_attention: whether there is attention between the middle blocks.
        head_dim: channels of an attention head; divides those of the levels with attention.
        dropout: probability inside residual blocks: one number, or one for every level (the middle has the last).
        groups: groups of GroupNorm, which sees all of the image; None for a norm of every pixel by itself.
        classes: number of labels, 0 for an unconditional network; the label `classes` means "no label".
        level_patch_size: side of a patch of the level map in pixels; a multiple of 2^(levels - 1) or a divisor of it.
        uncertainty: also predict how far off the velocity of each patch is, see `forward`.
        checkpointing: compute every block once more in the backward pass instead of keeping what is inside it.
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
        self._initialise()
        self.to(memory_format=torch.channels_last)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile all but embeddings and heads in place, with the arguments of torch.compile.

        The number of distinct levels is rounded up to a power of two from then on, so that it may change from batch to
        batch.
        """
        self._compiled = True
        self.trunk.compile(*args, **kwargs)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """The level map's grid (gh, gw) for images of (h, w); ValueError if they cannot be halved or divided so."""
        side = max(self.level_patch_size, self._coarsest)
        if size[0] % side or size[1] % side:
            raise ValueError(
                f"the sides of the image must be multiples of {side}, the larger of level_patch_size "
                f"{self.level_patch_size} and 2^(levels - 1) = {self._coarsest}, got {size[0]}x{size[1]}: "
                "resize or crop the images"
            )
        return size[0] // self.level_patch_size, size[1] // self.level_patch_size

    def forward(
        self, x_t: Image, t: LevelMap, label: Labels | None = None, *, unique: UniqueLevels | None = None
    ) -> Image | tuple[Image, LogVariances]:
        """The velocity; `unique` spares finding the distinct levels of `t` where the caller knows them.

        With `uncertainty` also the log-variance of its error, the mean over the pixels of each patch of the level map.
        """
        if x_t.shape[1] != self.channels:
            raise ValueError(f"images must have {self.channels} channels, got {x_t.shape[1]}: set network.channels")
        size = (x_t.shape[2], x_t.shape[3])
        self.grid(size)
        self._check_map((t.shape[1], t.shape[2]), size)
        conditionings = self._condition(unique or unique_levels(t), size, label)
        # The residual stream keeps the weights' precision under autocast, where convolutions round.
        x = x_t.to(self.head.weight.dtype, memory_format=torch.channels_last)
        if self._compiled:
            mark_varying(x, conditionings)
        features = self.trunk(x, conditionings)
        v = self.head(features).contiguous()
        if self.uncertainty_head is None:
            return v
        return v, mean_logvar(self.uncertainty_head(features).squeeze(1), self.level_patch_size)

    @property
    def _coarsest(self) -> int:
        """Side of a pixel of the last level in pixels of the image."""
        return 2 ** (len(self.multipliers) - 1)

    def _heads(self) -> list[int]:
        """Attention heads of every level, and of the middle."""
        attends = [level in self.attention for level in range(len(self.multipliers))]
        widths = [self.width * m for m in self.multipliers]
        pairs = zip([*widths, widths[-1]], [*attends, self.middle_attention], strict=True)
        return [width // self.head_dim if attends else 0 for width, attends in pairs]

    def _dropouts(self) -> list[float]:
        """The dropout of every level."""
        return list(self.dropout) if isinstance(self.dropout, tuple) else [self.dropout] * len(self.multipliers)

    def _condition(self, unique: UniqueLevels, size: tuple[int, int], label: Labels | None) -> list[Conditioning]:
        """What modulates the pixels of every level."""
        if self._compiled:
            unique = unique.padded()
        levels = F.silu(self.level_embedding(unique.values))
        labels = None
        if self.label_embedding is None:
            refuse_label(label)
        else:
            labels = F.silu(self.label_embedding.known(label, len(unique.index)))
        sizes = [(size[0] >> level, size[1] >> level) for level in range(len(self.multipliers))]
        return [conditioning(levels, unique.index, labels, at) for at in sizes]

    def _initialise(self) -> None:
        """Xavier's, N(0, 0.02) for labels, and zeros where a branch must vanish: at first the velocity is zero."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        for layer in self._vanishing():
            nn.init.zeros_(layer.weight)
        if self.label_embedding is not None:
            nn.init.normal_(self.label_embedding.table.weight, std=0.02)

    def _vanishing(self) -> Iterator[nn.Conv2d | nn.Linear]:
        """The last layer of every branch."""
        yield from (head for head in (self.head, self.uncertainty_head) if head is not None)
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                yield module.conv2
            elif isinstance(module, SelfAttention):
                yield module.attention.proj
            elif isinstance(module, Modulation):
                yield module.linear

    def _check_map(self, grid: tuple[int, int], size: tuple[int, int]) -> None:
        """Raise ValueError unless every pixel of every level lies in one patch or covers whole ones."""
        check_grid(grid, size)
        patch = size[0] // grid[0], size[1] // grid[1]
        if not all(_nested(side, self._coarsest) for side in patch):
            raise ValueError(
                "the sides of the level map's patches must be divisors or multiples of 2^(levels - 1) = "
                f"{self._coarsest} pixels, got {patch[0]}x{patch[1]}: choose another grid or other multipliers"
            )

    def _check(self) -> None:
        levels = len(self.multipliers)
        at_least("the number of multipliers", levels, 1, "one for every level")
        at_least("width", self.width, 1, "give channels")
        at_least("channels", self.channels, 1, "3 for colour")
        at_least("classes", self.classes, 0, "0 is for networks without labels")
        at_least("multipliers", min(self.multipliers), 1, "a level has channels")
        at_least("blocks", self.blocks, 1, "a level has blocks")
        at_least(
            "middle_blocks",
            self.middle_blocks,
            2 if self.middle_attention else 1,
            "middle_attention lies between two, so give more blocks or turn it off",
        )
        for level in self.attention:
            within("attention", level, 0, levels - 1, "name levels, 0 the finest")
        if len(self._dropouts()) != levels:
            raise ValueError(f"dropout must be one number or one per level, got {self.dropout} for {levels} levels")
        for probability in self._dropouts():
            within("dropout", probability, 0, 1, "it is a probability")
        at_least("level_patch_size", self.level_patch_size, 1, "give pixels")
        if not _nested(self.level_patch_size, self._coarsest):
            raise ValueError(
                f"level_patch_size must be a divisor or a multiple of 2^(levels - 1) = {self._coarsest}, "
                f"got {self.level_patch_size}: patches and the pixels of every level must nest"
            )
        self._check_divisors()

    def _check_divisors(self) -> None:
        attended = [self.multipliers[k] for k in self.attention] + [self.multipliers[-1]] * self.middle_attention
        for name, divisor, multipliers in (
            ("head_dim", self.head_dim, attended),
            ("groups", 1 if self.groups is None else self.groups, self.multipliers),
        ):
            at_least(name, divisor, 1, "it divides channels")
            for multiplier in multipliers:
                if self.width * multiplier % divisor:
                    raise ValueError(
                        f"{name} must divide the {self.width * multiplier} channels of its level, got {divisor}: "
                        f"change {name}, width or multipliers"
                    )


def _nested(patch: int, coarsest: int) -> bool:
    """Whether patches of this side and pixels of all resolutions lie in each other; `coarsest` is a power of two."""
    return coarsest % patch == 0 or patch % coarsest == 0
