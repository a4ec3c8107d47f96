"""DiT (Peebles & Xie, arXiv:2212.09748) whose adaLN-zero is per patch: each token is modulated by its own level."""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import repeat
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from timm.layers import Attention, AttentionRope, Mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from asyncdiff.checks import at_least, within
from asyncdiff.networks.embeddings import (
    LEVEL_SCALE,
    MAX_PERIOD,
    LabelEmbedding,
    LevelEmbedding,
    grid_positions,
    refuse_label,
    rotations,
)
from asyncdiff.networks.kv_cache import KVCache
from asyncdiff.networks.logvar_pooling import mean_logvar
from asyncdiff.networks.modulation import (
    Conditioning,
    Modulation,
    check_map,
    gated,
    mark_varying,
    modulated,
    token_index,
)
from asyncdiff.networks.norms import RMSNorm
from asyncdiff.shapes import Image, Labels, LevelMap, UniqueLevels, unique_levels

Tokens = Float[Tensor, "b n dim"]
Outputs = Float[Tensor, "b n features"]  # what the network says of every token
LogVariances = Float[Tensor, "b lh lw"]  # the network's grid, also where its level map is coarser
Rotations = Float[Tensor, "all_tokens two_head_dim"]  # sine and cosine of the angles of every token, as timm has them
Attend = Callable[[nn.Module, Tensor], Tensor]  # the attention of some tokens to all


class DiTBlock(nn.Module):
    """Attention and MLP, each with a shift, scale and gate per token.

    Args:
        dim: width.
        heads: attention heads.
        mlp_ratio: width of the MLP relative to `dim`.
        dropout: after attention and inside the MLP.
        rope: whether queries and keys are rotated by their token's position.
        qk_norm: whether they are normalised.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        rope: bool = False,
        qk_norm: bool = False,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        options: dict[str, Any] = {"qkv_bias": True, "proj_drop": dropout, "qk_norm": qk_norm, "norm_layer": RMSNorm}
        self.attention = (
            AttentionRope(dim, heads, num_prefix_tokens=0, **options) if rope else Attention(dim, heads, **options)
        )
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=_TanhGelu, drop=dropout)
        self.modulation = Modulation(dim, 6)

    def forward(
        self, x: Tokens, conditioning: Conditioning, rope: Rotations | None = None, attend: Attend | None = None
    ) -> Tokens:
        """The tokens after the block; the identity at initialisation. `attend` stands for the attention's forward."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(conditioning)
        h = modulated(self.norm1(x), shift1, scale1)
        if attend is not None:
            change = attend(self.attention, h)
        else:
            change = self.attention(h) if rope is None else self.attention(h, rope)
        x = gated(x, gate1, change)
        return gated(x, gate2, self.mlp(modulated(self.norm2(x), shift2, scale2)))


class DiT(nn.Module):
    """Velocity of every pixel from a noisy image and the level of every patch.

    Sizes of the paper (dim / depth / heads): S 384/12/6, B 768/12/12, L 1024/24/16, XL 1152/28/16. Any image size that
    the patches divide will do: the position embedding is computed from the token grid.

    Args:
        channels: channels of the image.
        patch_size: side of a token in pixels.
        dim: width; divisible by `heads` and by 4.
        depth: number of blocks.
        heads: attention heads.
        mlp_ratio: width of the MLP relative to `dim`.
        classes: number of labels, 0 for an unconditional network; the label `classes` means "no label".
        level_patch_size: side of a patch of the level map in pixels, a multiple of `patch_size`; that size by default.
        positions: whether fixed sines and cosines of its place are added to every token, as in DiT. Without these and
            without `rope` tokens do not know where they are.
        dropout: after attention and inside the MLP.
        uncertainty: also predict how far off the velocity of each patch is, see `forward`.
        rope: rotate queries and keys by their token's row and column (RoPE, arXiv:2104.09864, in two dimensions).
        qk_norm: normalise queries and keys by their root mean square (arXiv:2302.05442): keeps large networks stable.
        checkpointing: compute every block once more in the backward pass instead of keeping what is inside it.
        joint_labels: let the label in before the nonlinearity, silu(level + label), as DiT and SiT do, for checkpoints
            of theirs. Costs one modulation for every level of every image, where silu(level) + silu(label) takes
            one for every level of the batch: train with few `level_values`.
        level_scale: what a level is multiplied by before it is embedded; 1000 is DiT's, 1 SiT's.
        level_period: longest period of the sinusoids that embed a level.
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
        at_least("channels", channels, 1, "3 for colour")
        at_least("depth", depth, 1, "12 is usual")
        at_least("classes", classes, 0, "0 is for networks without labels")
        at_least("mlp_ratio", mlp_ratio, 0, "4 is usual")
        within("dropout", dropout, 0, 1, "it is a probability")
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

        self.embed = nn.Linear(channels * patch_size**2, dim)
        self.level_embedding = LevelEmbedding(dim, scale=level_scale, max_period=level_period)
        self.label_embedding = LabelEmbedding(classes, dim) if classes else None
        self.blocks = nn.ModuleList(DiTBlock(dim, heads, mlp_ratio, dropout, rope, qk_norm) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.final_modulation = Modulation(dim, 2)
        self.head = nn.Linear(dim, channels * patch_size**2)
        self.uncertainty_head = nn.Linear(dim, 1) if uncertainty else None
        self._compiled = False
        self._initialise()

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile every block in place, with the arguments of torch.compile: one compilation serves them all.

        The rest is little work. The number of distinct levels is rounded up to a power of two from then on, so that it
        may change from batch to batch.
        """
        self._compiled = True
        for block in self.blocks:
            block.compile(*args, **kwargs)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """The level map's grid (gh, gw) for images of (h, w); ValueError if the patches do not divide them."""
        patch = self.level_patch_size or self.patch_size
        if size[0] < patch or size[1] < patch:
            raise ValueError(
                f"images must be at least one patch large, got {size[0]}x{size[1]} pixels for patches of "
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
        t: LevelMap,
        label: Labels | None = None,
        *,
        unique: UniqueLevels | None = None,
        kv_cache: KVCache | None = None,
    ) -> Image | tuple[Image, LogVariances]:
        """The velocity; `unique` spares finding the distinct levels of `t` where the caller knows them.

        With `uncertainty` also the log-variance of its error, the mean over the pixels of each patch of the level map.
        With a `kv_cache` only the tokens of its moving patches are computed, all of them if it names none.
        """
        if x_t.shape[1] != self.channels:
            raise ValueError(f"images must have {self.channels} channels, got {x_t.shape[1]}: set network.channels")
        self.grid((x_t.shape[2], x_t.shape[3]))
        tokens = (x_t.shape[2] // self.patch_size, x_t.shape[3] // self.patch_size)
        check_map((t.shape[1], t.shape[2]), tokens)
        conditioning = self._condition(unique or unique_levels(t), tokens, label)
        # The residual stream keeps the weights' precision under autocast, where matrix products round.
        x = self.embed(patchify(x_t, self.patch_size).to(self.embed.weight.dtype)).to(self.embed.weight.dtype)
        if self.positions:
            x = x + grid_positions(tokens, self.dim, x.device).to(x.dtype)
        if self._compiled:
            mark_varying(x, [conditioning])
        rope = rotations(tokens, self.dim // self.heads, x.device) if self.rope else None
        output = (
            self._tokens(x, conditioning, rope, repeat(None))
            if kv_cache is None
            else self._some(x, conditioning, rope, kv_cache, tokens)
        )
        v = unpatchify(output[:, :, : self.head.out_features], tokens, self.patch_size)
        if self.uncertainty_head is None:
            return v
        side = (self.level_patch_size or self.patch_size) // self.patch_size
        return v, mean_logvar(output[:, :, -1].unflatten(1, tokens), side)

    def kv_cache(self) -> KVCache:
        """An empty memory for a walk in which not all patches are computed every time."""
        return KVCache()

    def _tokens(
        self, x: Tokens, conditioning: Conditioning, rope: Rotations | None, attends: Iterable[Attend | None]
    ) -> Outputs:
        """Velocities of every token's pixels, and its log-variance where there is a head for it."""
        for block, attend in zip(self.blocks, attends, strict=False):
            if attend is not None:
                x = block.forward(x, conditioning, rope, attend)  # never compiled: it changes what is remembered
            elif self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, conditioning, rope, use_reentrant=False)
            else:
                x = block(x, conditioning, rope)
        shift, scale = self.final_modulation(conditioning)
        x = modulated(self.norm(x), shift, scale)
        return torch.cat([self.head(x), self.uncertainty_head(x)], dim=2) if self.uncertainty_head else self.head(x)

    def _some(
        self,
        x: Tokens,
        conditioning: Conditioning,
        rope: Rotations | None,
        kv_cache: KVCache,
        tokens: tuple[int, int],
    ) -> Outputs:
        """What `_tokens` says of the memory's moving patches, and what it last said of the others."""
        chosen = kv_cache.chosen(tokens)
        if chosen is not None:
            x, conditioning = chosen.of(x), conditioning.at(chosen.index)
        attends = (partial(kv_cache.attend, block=k, chosen=chosen, rope=rope) for k in range(self.depth))
        return kv_cache.finish(self._tokens(x, conditioning, rope, attends), chosen)

    def _condition(self, unique: UniqueLevels, tokens: tuple[int, int], label: Labels | None) -> Conditioning:
        index = token_index(unique, tokens)
        if self._compiled:
            unique = unique.padded()
        levels = self.level_embedding(unique.values)
        if self.label_embedding is None:
            refuse_label(label)
            return Conditioning(F.silu(levels), index, None)
        labels = self.label_embedding.known(label, len(index))
        if self.joint_labels:
            return _joint(levels, index, labels)
        return Conditioning(F.silu(levels), index, F.silu(labels))

    def _initialise(self) -> None:
        """DiT's initialisation: Xavier for the blocks, N(0, 0.02) for embeddings, zeros where a block must vanish."""
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
    """(b, c, h, w) -> (b, tokens, c patch patch), tokens in raster order."""
    b, c, h, w = x.shape
    cells = x.reshape(b, c, h // patch, patch, w // patch, patch)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(b, (h // patch) * (w // patch), c * patch * patch)


def unpatchify(x: Tokens, tokens: tuple[int, int], patch: int) -> Image:
    """The inverse of `patchify` for a token grid."""
    b, _, features = x.shape
    cells = x.reshape(b, *tokens, features // patch**2, patch, patch)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(b, -1, tokens[0] * patch, tokens[1] * patch)


def _joint(levels: Float[Tensor, "r dim"], index: Int64[Tensor, "b n"], labels: Float[Tensor, "b dim"]) -> Conditioning:
    """silu(level + label) for every level of every image, or for every token where these are fewer."""
    (b, n), r = index.shape, len(levels)
    image = torch.arange(b, device=index.device)[:, None]
    if r < n:
        pairs = (levels[None] + labels[:, None]).flatten(0, 1)
        return Conditioning(F.silu(pairs), index + r * image, None)
    pairs = (levels[index] + labels[:, None]).flatten(0, 1)
    return Conditioning(F.silu(pairs), n * image + torch.arange(n, device=index.device), None)


class _TanhGelu(nn.GELU):
    """DiT's GELU; timm's Mlp builds its activation without arguments."""

    def __init__(self) -> None:
        super().__init__(approximate="tanh")


def _check_sizes(patch_size: int, dim: int, heads: int, level_patch_size: int | None) -> None:
    if patch_size < 1:
        raise ValueError(f"patch_size must be at least 1, got {patch_size}")
    if min(dim, heads) < 1 or dim % heads or dim % 4:
        raise ValueError(f"dim must be divisible by heads and by 4, got dim {dim} with {heads} heads")
    if level_patch_size is not None and (level_patch_size < patch_size or level_patch_size % patch_size):
        raise ValueError(
            f"level_patch_size must be a multiple of patch_size {patch_size}, got {level_patch_size}: "
            "a level map is as fine as the tokens or coarser"
        )
