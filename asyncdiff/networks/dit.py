"""DiT (Peebles & Xie, arXiv:2212.09748) with adaLN-zero per token: each token is modulated by its own noise level."""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import repeat
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from asyncdiff.checks import at_least, finite, positive, within
from asyncdiff.networks.attention import Attention, GridRotations, rotations
from asyncdiff.networks.embeddings import (
    LEVEL_SCALE,
    MAX_PERIOD,
    LabelEmbedding,
    LevelEmbedding,
    check_channels,
    embed_labels,
    grid_positions,
)
from asyncdiff.networks.kv_cache import KVCache
from asyncdiff.networks.layers import MLP, mean_logvar
from asyncdiff.networks.modulation import (
    Conditioning,
    Modulation,
    add_gated,
    mark_dynamic_sizes,
    modulate,
    token_index,
)
from asyncdiff.networks.parameter_memory import BLOCK, check_parameters
from asyncdiff.shapes import Image, IndexedLevels, Labels, Levels, indexed

Tokens = Float[Tensor, "b n dim"]
Outputs = Float[Tensor, "b n features"]  # velocity of every token's pixels, and its log-variance
LogVariances = Float[Tensor, "b lh lw"]  # on the network's grid, even if the level map is coarser
Attend = Callable[[Attention, Tensor], Tensor]  # attention of the selected tokens to all tokens


class DiTBlock(nn.Module):
    """Transformer block: attention and MLP, each with a shift, scale and gate per token (adaLN-zero).

    Args:
        dim: width.
        heads: number of attention heads.
        mlp_ratio: width of the MLP relative to `dim`.
        dropout: dropout probability after attention and inside the MLP.
        qk_norm: whether queries and keys are normalized.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        qk_norm: bool = False,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.attention = Attention(dim, heads, qk_norm, dropout)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.mlp = MLP(dim, int(dim * mlp_ratio), dropout)
        self.modulation = Modulation(dim, 6)

    def forward(
        self, x: Tokens, conditioning: Conditioning, rope: GridRotations | None = None, attend: Attend | None = None
    ) -> Tokens:
        """Return the tokens after the block; at initialization the block is the identity.

        Args:
            x: token features.
            conditioning: conditioning of every token.
            rope: rotations of all tokens; None without rotary position embedding.
            attend: function (attention layer, tokens) that replaces the attention layer's forward.

        Returns:
            The new token features.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(conditioning)
        h = modulate(self.norm1(x), shift1, scale1)
        change = self.attention(h, rope) if attend is None else attend(self.attention, h)
        x = add_gated(x, gate1, change)
        return add_gated(x, gate2, self.mlp(modulate(self.norm2(x), shift2, scale2)))


class DiT(nn.Module):
    """Diffusion transformer with one noise level per patch: predicts the velocity of every pixel.

    DiT of Peebles & Xie (arXiv:2212.09748), except that every token is modulated by its own level. Use it for partial
    updates (KV cache) and for ported DiT and SiT checkpoints; `UNet` is the convolutional alternative. Any image size
    that the patches divide works: the position embedding is computed from the token grid.

    Sizes of the paper (dim / depth / heads): S 384/12/6, B 768/12/12, L 1024/24/16, XL 1152/28/16.

    Args:
        channels: number of channels of the image.
        patch_size: side of a token in pixels.
        dim: width; divisible by `heads` and by 4.
        depth: number of blocks.
        heads: number of attention heads.
        mlp_ratio: width of the MLP relative to `dim`.
        classes: number of class labels, or 0 for an unconditional network; the label `classes` means "no label".
        level_patch_size: side of a patch of the level map in pixels, a multiple of `patch_size`; `patch_size` by
            default.
        positions: whether to add fixed sines and cosines of the position to every token, as in DiT. Without them and
            without `rope`, the network does not know the tokens' positions.
        dropout: dropout probability after attention and inside the MLP.
        uncertainty: whether to also predict the error of the velocity of each patch, see `forward`.
        rope: whether to rotate queries and keys by the row and column of their token (RoPE, arXiv:2104.09864, in two
            dimensions).
        qk_norm: whether to normalize queries and keys by their root mean square (arXiv:2302.05442), which keeps large
            networks stable.
        checkpointing: whether to recompute every block in the backward pass instead of storing its activations.
        joint_labels: whether to add the label before the nonlinearity, silu(level + label), as DiT and SiT do; needed
            for their checkpoints. Costs one modulation per level of every image, whereas silu(level) + silu(label)
            costs one per level of the batch: train with few `level_values`.
        level_scale: factor applied to levels before they are embedded; 1000 as in DiT, 1 as in SiT.
        level_period: longest period of the sinusoids that embed a level.

    Example:
        >>> network = DiT(channels=3, patch_size=4, dim=64, depth=2, heads=4, classes=10)
        >>> network.grid((32, 32))
        (8, 8)
        >>> x_t, t = torch.randn(2, 3, 32, 32), torch.rand(2, 8, 8)  # a level for every patch
        >>> network(x_t, t, torch.tensor([3, 7])).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(
        self,
        channels: int = 3,
        patch_size: int = 2,
        dim: int = 384,
        depth: int = 12,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        classes: int = 0,
        level_patch_size: int | None = None,
        positions: bool = True,
        dropout: float = 0.0,
        uncertainty: bool = False,
        rope: bool = False,
        qk_norm: bool = False,
        checkpointing: bool = False,
        joint_labels: bool = False,
        level_scale: float = LEVEL_SCALE,
        level_period: float = MAX_PERIOD,
    ):
        super().__init__()
        _check_sizes(patch_size, dim, heads, level_patch_size)
        at_least("channels", channels, 1, "use 3 for color images")
        at_least("depth", depth, 1, "use 12, for example")
        at_least("classes", classes, 0, "use 0 for a network without labels")
        at_least("mlp_ratio", mlp_ratio, 0, "use 4, for example", 1024)
        within("dropout", dropout, 0, 1, "it is a probability")
        positive("level_scale", level_scale, "omit it unless the weights need another")
        positive("level_period", level_period, "omit it unless the weights need another")
        if rope and dim // heads % 4:
            raise ValueError(f"dim / heads must be divisible by 4 for rope, got {dim} / {heads}: change heads")
        self.channels = channels
        self.patch_size = patch_size
        self.dim = dim
        self.depth = depth
        self.heads = heads
        self.mlp_ratio = mlp_ratio
        self.classes = classes
        self.level_patch_size = level_patch_size
        self.positions = positions
        self.dropout = dropout
        self.uncertainty = uncertainty
        self.rope = rope
        self.qk_norm = qk_norm
        self.checkpointing = checkpointing
        self.joint_labels = joint_labels
        self.level_scale = level_scale
        self.level_period = level_period
        check_parameters(self, self._numbers())

        self.embed = nn.Linear(channels * patch_size**2, dim)
        self.level_embedding = LevelEmbedding(dim, scale=level_scale, max_period=level_period)
        self.label_embedding = LabelEmbedding(classes, dim) if classes else None
        self.blocks = nn.ModuleList(DiTBlock(dim, heads, mlp_ratio, dropout, qk_norm) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.final_modulation = Modulation(dim, 2)
        self.head = nn.Linear(dim, channels * patch_size**2)
        self.uncertainty_head = nn.Linear(dim, 1) if uncertainty else None
        self._compiled = False
        self._initialize()

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile every block in place, with the arguments of torch.compile; one compilation serves all blocks.

        The rest of the network takes little time. From then on the number of distinct levels is padded to a power of
        two, so that it can change from batch to batch without recompilation.
        """
        self._compiled = True
        for block in self.blocks:
            block.compile(*args, **kwargs)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the level map's grid (gh, gw) for images of (h, w); raise ValueError if patches do not divide them."""
        patch = self.level_patch_size or self.patch_size
        if size[0] < patch or size[1] < patch:
            raise ValueError(
                f"images must be at least as large as a patch, got {size[0]}x{size[1]} pixels with patches of "
                f"{patch}x{patch}: use larger images or a smaller patch_size"
            )
        if size[0] % patch or size[1] % patch:
            raise ValueError(
                f"the sides of the image must be multiples of the patch size {patch}, got {size[0]}x{size[1]}: "
                "resize or crop the images"
            )
        return size[0] // patch, size[1] // patch

    def forward(
        self,
        x_t: Image,
        t: Levels,
        label: Labels | None = None,
        *,
        kv_cache: KVCache | None = None,
    ) -> Image | tuple[Image, LogVariances]:
        """Predict the velocity of every pixel.

        Args:
            x_t: noisy images, (b, c, h, w).
            t: level map, (b, gh, gw), on the grid of `self.grid` or a coarser one that divides it. The distinct levels
                of a tensor are found by sorting, those of `IndexedLevels` are known.
            label: class of every image; None means "no label".
            kv_cache: cache of a sampling trajectory; only the tokens of its moving patches are computed. None computes
                all tokens.

        Returns:
            The velocity (b, c, h, w); with `uncertainty` also the log-variance of its error (b, lh, lw), the mean over
            the pixels of each patch of the network's level grid.
        """
        check_channels(x_t, self.channels)
        self.grid((x_t.shape[2], x_t.shape[3]))
        tokens = (x_t.shape[2] // self.patch_size, x_t.shape[3] // self.patch_size)
        conditioning = self._condition(indexed(t), tokens, label)
        # The residual stream keeps the weights' precision under autocast, where matrix products round.
        x = self.embed(patchify(x_t, self.patch_size).to(self.embed.weight.dtype)).to(self.embed.weight.dtype)
        if self.positions:
            x = x + grid_positions(tokens, self.dim, x.device).to(x.dtype)
        if self._compiled:
            mark_dynamic_sizes(x, [conditioning])
        rope = rotations(tokens, self.dim // self.heads, x.device) if self.rope else None
        output = (
            self._run_blocks(x, conditioning, rope, repeat(None))
            if kv_cache is None
            else self._run_selected(x, conditioning, rope, kv_cache, tokens)
        )
        v = unpatchify(output[:, :, : self.head.out_features], tokens, self.patch_size)
        if self.uncertainty_head is None:
            return v
        side = (self.level_patch_size or self.patch_size) // self.patch_size
        return v, mean_logvar(output[:, :, -1].unflatten(1, tokens), side)

    def kv_cache(self) -> KVCache:
        """Return an empty KV cache for one sampling trajectory with partial updates."""
        return KVCache()

    def _run_blocks(
        self, x: Tokens, conditioning: Conditioning, rope: GridRotations | None, attends: Iterable[Attend | None]
    ) -> Outputs:
        """Return the velocity of every token's pixels, followed by its log-variance if there is a head for it."""
        for block, attend in zip(self.blocks, attends, strict=False):
            if attend is not None:
                x = block.forward(x, conditioning, rope, attend)  # not compiled: it updates the cache in place
            elif self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, conditioning, rope, use_reentrant=False)
            else:
                x = block(x, conditioning, rope)
        shift, scale = self.final_modulation(conditioning)
        x = modulate(self.norm(x), shift, scale)
        return torch.cat([self.head(x), self.uncertainty_head(x)], dim=2) if self.uncertainty_head else self.head(x)

    def _run_selected(
        self,
        x: Tokens,
        conditioning: Conditioning,
        rope: GridRotations | None,
        kv_cache: KVCache,
        tokens: tuple[int, int],
    ) -> Outputs:
        """Return the outputs of all tokens, computed for the cache's moving patches and cached for the others."""
        selected = kv_cache.begin(tokens)
        if selected is not None:
            x, conditioning = selected.gather(x), conditioning.gather(selected.index)
        attends = (partial(kv_cache.attend, block=k, selected=selected, rope=rope) for k in range(self.depth))
        return kv_cache.finish(self._run_blocks(x, conditioning, rope, attends), selected)

    def _condition(self, t: IndexedLevels, tokens: tuple[int, int], label: Labels | None) -> Conditioning:
        index = token_index(t, tokens)
        if self._compiled:
            t = t.padded()
        levels = self.level_embedding(t.values)
        labels = embed_labels(self.label_embedding, label, len(index))
        if labels is not None and self.joint_labels:
            return _joint_conditioning(levels, index, labels, self._compiled)
        labels = None if labels is None else F.silu(labels)
        return Conditioning(F.silu(levels), index, labels).for_device(compiled=self._compiled)

    def _numbers(self) -> dict[str, float]:
        """Return how many parameters there are at least, by the argument that most of them are due to."""
        width, mlp, pixels = 10 * self.dim**2, 2 * self.dim**2 * self.mlp_ratio, self.channels * self.patch_size**2
        return {
            "dim": width,
            "mlp_ratio": mlp,
            "depth": (self.depth - 1) * (width + mlp + BLOCK),
            "patch_size" if self.patch_size**2 > self.channels else "channels": 2 * pixels * self.dim,
            "classes": self.classes * self.dim,
        }

    def _initialize(self) -> None:
        """Initialize as in DiT: Xavier for blocks, N(0, 0.02) for embeddings, zeros to make blocks the identity."""
        stays_zero = {module.linear for module in self.modules() if isinstance(module, Modulation)}
        for layer in [self.embed, *self.blocks.modules()]:
            if isinstance(layer, nn.Linear) and layer not in stays_zero:
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        for layer in self.level_embedding.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
        if self.label_embedding is not None:
            nn.init.normal_(self.label_embedding.table.weight, std=0.02)
        for head in (self.head, self.uncertainty_head):
            if head is not None:
                nn.init.zeros_(head.weight)
                nn.init.zeros_(head.bias)


def patchify(x: Image, patch: int) -> Tokens:
    """Split images (b, c, h, w) into tokens (b, tokens, c patch patch), in raster order."""
    b, c, h, w = x.shape
    cells = x.reshape(b, c, h // patch, patch, w // patch, patch)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(b, (h // patch) * (w // patch), c * patch * patch)


def unpatchify(x: Tokens, tokens: tuple[int, int], patch: int) -> Image:
    """Invert `patchify`, for the token grid `tokens`."""
    b, _, features = x.shape
    cells = x.reshape(b, *tokens, features // patch**2, patch, patch)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(b, -1, tokens[0] * patch, tokens[1] * patch)


def _joint_conditioning(
    levels: Float[Tensor, "r dim"], index: Int64[Tensor, "b n"], labels: Float[Tensor, "b dim"], compiled: bool
) -> Conditioning:
    """Return silu(level + label) for every level of every image, or for every token if there are fewer tokens."""
    (b, n), r = index.shape, len(levels)
    image = torch.arange(b, device=index.device)[:, None]
    if r < n:
        pairs = (levels[None] + labels[:, None]).flatten(0, 1)
        return Conditioning(F.silu(pairs), index + r * image, None).for_device(per_image=True, compiled=compiled)
    pairs = (levels[index] + labels[:, None]).flatten(0, 1)
    return Conditioning(F.silu(pairs), n * image + torch.arange(n, device=index.device), None).for_device(
        compiled=compiled
    )


def _check_sizes(patch_size: int, dim: int, heads: int, level_patch_size: int | None) -> None:
    at_least("patch_size", patch_size, 1, "use 2, for example")
    finite("dim", dim, "use 384, for example")
    finite("heads", heads, "use 6, for example")
    finite("level_patch_size", level_patch_size or 0, "omit it for that of the tokens")
    if min(dim, heads) < 1 or dim % heads or dim % 4:
        raise ValueError(
            f"dim must be divisible by heads and by 4, got dim {dim} with {heads} heads: change dim or heads"
        )
    if level_patch_size is not None and (level_patch_size < patch_size or level_patch_size % patch_size):
        raise ValueError(
            f"level_patch_size must be a multiple of patch_size {patch_size}, got {level_patch_size}: "
            "a level map cannot be finer than the tokens"
        )
