"""KV cache for partial updates: keys, values and last outputs of the tokens that are not recomputed."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from asyncdiff.devices import to_device
from asyncdiff.networks.attention import Attention, GridRotations, Tokens
from asyncdiff.shapes import KnownPatches, upsampled_to

Outputs = Float[Tensor, "b n features"]


@dataclass
class SelectedTokens:
    """Tokens to compute, padded to the same number m for every image.

    Attributes:
        index: token indices; images with fewer than m tokens repeat their first one.
        valid: False for images in which no token is computed.
        output: last output of the network for every token.
    """

    index: Int64[Tensor, "b m"]
    valid: Bool[Tensor, " b"]
    output: Outputs

    def gather(self, tokens: Float[Tensor, "b n dim"]) -> Tokens:
        """Return the selected tokens."""
        return tokens.gather(1, self.index[:, :, None].expand(-1, -1, tokens.shape[2]))

    def with_output(self, new: Float[Tensor, "b m features"]) -> Outputs:
        """Return the outputs of all tokens: `new` for the selected ones, the last output for the others."""
        old = self.output
        index = self.index[:, :, None].expand(-1, -1, old.shape[2])
        return old.scatter(1, index, torch.where(self.valid[:, None, None], new.to(old.dtype), old.gather(1, index)))

    def update(self, state: Float[Tensor, "2 b heads n head_dim"], new: Float[Tensor, "2 b heads m head_dim"]) -> None:
        """Replace the keys and values of the selected tokens in place: they are few, so a copy would be wasteful."""
        index = self.index[None, :, None, :, None].expand(new.shape)
        valid = self.valid[None, :, None, None, None]
        state.scatter_(3, index, torch.where(valid, new.to(state.dtype), state.gather(3, index)))


@dataclass
class KVCache:
    """KV cache of one sampling trajectory, for a DiT.

    Set `moving` before every evaluation and pass the cache to the network's `forward`.

    Attributes:
        moving: patches to compute, on the CPU so that nothing waits for a GPU; None computes and stores all of them.
        states: keys (normalized and rotated) and values of every block, (2, b, heads, n, head_dim).
        output: last output of the network for every token.
    """

    moving: KnownPatches | None = None
    states: list[Tensor] = field(default_factory=list)
    output: Tensor | None = None

    @property
    def rows(self) -> int | None:
        """Number of images in the cache; None before the first evaluation."""
        return None if self.output is None else len(self.output)

    def select(self, rows: Int64[Tensor, " n"]) -> None:
        """Keep only the images `rows`, in place; `rows` on the CPU make nothing wait for a GPU."""
        if self.output is not None:
            rows = to_device(rows, self.output.device)
        self.states = [state[:, rows] for state in self.states]
        self.output = None if self.output is None else self.output[rows]

    def begin(self, tokens: tuple[int, int]) -> SelectedTokens | None:
        """Return the tokens to compute in a new evaluation on this grid (those of moving patches), or None for all.

        If all tokens are to be computed, as in the first evaluation, the cached keys and values are dropped.
        """
        if self.moving is None or self.output is None:
            self.states = []
            return None
        moving = upsampled_to(self.moving, tokens, "moving").flatten(1)
        counts = moving.sum(1)
        max_count = max(int(counts.max()), 1)
        # A stable sort puts the moving tokens of an image first, in raster order.
        order = (~moving).to(torch.int8).argsort(dim=1, stable=True)[:, :max_count]
        position = torch.arange(max_count, device=order.device).expand_as(order)
        index = torch.where(position < counts[:, None], order, order[:, :1])
        device = self.output.device
        return SelectedTokens(to_device(index, device), to_device(counts > 0, device), self.output)

    def attend(
        self,
        attention: Attention,
        x: Tokens,
        block: int,
        selected: SelectedTokens | None,
        rope: GridRotations | None = None,
    ) -> Tokens:
        """Compute the attention of the selected tokens to all tokens, and update the cache.

        Args:
            attention: attention layer of the block.
            x: features of the selected tokens.
            block: index of the block.
            selected: indices of the selected tokens; None if `x` has all tokens.
            rope: rotations of all tokens; None without rotary position embedding.

        Returns:
            Output of the attention layer for the selected tokens.
        """
        q, k, v = attention.project(x, rope if rope is None or selected is None else rope[selected.index][:, None])
        if selected is None:
            self.states.append(torch.stack([k, v]))
        else:
            selected.update(self.states[block], torch.stack([k, v]))
        return attention.output(q, *self.states[block].to(q.dtype))

    def finish(self, output: Float[Tensor, "b m features"], selected: SelectedTokens | None) -> Outputs:
        """Finish an evaluation: store `output` for the selected tokens, and return the outputs of all tokens."""
        self.output = output if selected is None else selected.with_output(output)
        return self.output
