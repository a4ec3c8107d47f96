"""What a transformer remembers of tokens that it does not compute: keys and values, and their last outputs."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from timm.layers import Attention, AttentionRope, apply_rot_embed_cat
from torch import Tensor

from asyncdiff.shapes import KnownPatches, upsampled_to

Tokens = Float[Tensor, "b m dim"]


@dataclass
class SelectedTokens:
    """The tokens that are computed: as many for every image as for the one with the most.

    Attributes:
        index: their places; images with fewer repeat their first one.
        valid: False for all tokens of images that compute none.
    """

    index: Int64[Tensor, "b m"]
    valid: Bool[Tensor, " b"]

    def of(self, tokens: Float[Tensor, "b n dim"]) -> Tokens:
        """The chosen tokens."""
        return tokens.gather(1, self.index[:, :, None].expand(-1, -1, tokens.shape[2]))

    def into(self, old: Float[Tensor, "b n dim"], new: Tokens) -> Float[Tensor, "b n dim"]:
        """`old` with the chosen tokens replaced."""
        index = self.index[:, :, None].expand(-1, -1, old.shape[2])
        return old.scatter(1, index, torch.where(self.valid[:, None, None], new.to(old.dtype), old.gather(1, index)))

    def store(self, state: Float[Tensor, "2 b heads n head_dim"], new: Float[Tensor, "2 b heads m head_dim"]) -> None:
        """Replace the chosen tokens' keys and values, in place: the others are many."""
        index = self.index[None, :, None, :, None].expand(new.shape)
        valid = self.valid[None, :, None, None, None]
        state.scatter_(3, index, torch.where(valid, new.to(state.dtype), state.gather(3, index)))


@dataclass
class KVCache:
    """The memory of one walk.

    Attributes:
        moving: patches to compute; None computes and stores all of them.
        states: keys, as queries meet them, and values of every block, (2, b, heads, n, head_dim).
        output: what the network last said of every token.
    """

    moving: KnownPatches | None = None
    states: list[Tensor] = field(default_factory=list)
    output: Tensor | None = None

    @property
    def rows(self) -> int | None:
        """Number of images remembered, None before the first evaluation."""
        return None if self.output is None else len(self.output)

    def narrow(self, rows: Int64[Tensor, " n"]) -> None:
        """Forget the other images."""
        self.states = [state[:, rows] for state in self.states]
        self.output = None if self.output is None else self.output[rows]

    def chosen(self, tokens: tuple[int, int]) -> SelectedTokens | None:
        """The tokens of the moving patches, None for all."""
        if self.moving is None:
            self.states = []
            return None
        moving = upsampled_to(self.moving, tokens, "moving").flatten(1)
        counts = moving.sum(1)
        most = max(int(counts.max()), 1)
        # A stable sort puts an image's moving tokens first, in reading order.
        order = (~moving).to(torch.int8).argsort(dim=1, stable=True)[:, :most]
        place = torch.arange(most, device=order.device).expand_as(order)
        return SelectedTokens(torch.where(place < counts[:, None], order, order[:, :1]), counts > 0)

    def attend(
        self,
        attention: Attention | AttentionRope,
        x: Tokens,
        block: int,
        chosen: SelectedTokens | None,
        rope: Float[Tensor, "all_tokens two_head_dim"] | None = None,
    ) -> Tokens:
        """timm's attention of the chosen tokens to all, whose keys and values are brought up to date by theirs."""
        q, k, v = attention.qkv(x).unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = attention.q_norm(q), attention.k_norm(k)
        if rope is not None:
            at = rope if chosen is None else rope[chosen.index][:, None]
            q, k = apply_rot_embed_cat(q, at).type_as(v), apply_rot_embed_cat(k, at).type_as(v)
        if chosen is None:
            self.states.append(torch.stack([k, v]))
        else:
            chosen.store(self.states[block], torch.stack([k, v]))
        k, v = self.states[block].to(q.dtype)
        result = F.scaled_dot_product_attention(q, k, v)
        return attention.proj_drop(attention.proj(attention.norm(result.transpose(1, 2).flatten(2))))

    def finish(
        self, output: Float[Tensor, "b m features"], chosen: SelectedTokens | None
    ) -> Float[Tensor, "b n features"]:
        """The outputs of all tokens: the fresh ones, and what was last said of the others."""
        assert chosen is None or self.output is not None, "the first evaluation is of all tokens"
        self.output = output if chosen is None or self.output is None else chosen.into(self.output, output)
        return self.output
