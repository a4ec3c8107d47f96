"""Rename the weights of diffusers' DiTTransformer2DModel to the names that DiT's authors use."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from asyncdiff.networks.embeddings import MAX_PERIOD

# Frequencies are MAX_PERIOD^(-i / 127) in diffusers (downscale_freq_shift = 1), MAX_PERIOD^(-i / 128) in the original.
DIFFUSERS_PERIOD = MAX_PERIOD ** (128 / 127)

_OUTER = {
    "pos_embed.proj.weight": "x_embedder.proj.weight",
    "pos_embed.proj.bias": "x_embedder.proj.bias",
    "pos_embed.pos_embed": "pos_embed",
    "proj_out_1.weight": "final_layer.adaLN_modulation.1.weight",
    "proj_out_1.bias": "final_layer.adaLN_modulation.1.bias",
    "proj_out_2.weight": "final_layer.linear.weight",
    "proj_out_2.bias": "final_layer.linear.bias",
}
_EMBEDDINGS = {
    "timestep_embedder.linear_1.weight": "t_embedder.mlp.0.weight",
    "timestep_embedder.linear_1.bias": "t_embedder.mlp.0.bias",
    "timestep_embedder.linear_2.weight": "t_embedder.mlp.2.weight",
    "timestep_embedder.linear_2.bias": "t_embedder.mlp.2.bias",
    "class_embedder.embedding_table.weight": "y_embedder.embedding_table.weight",
}
_IN_BLOCKS = {
    "norm1.linear": "adaLN_modulation.1",
    "attn1.to_q": "attn.q",
    "attn1.to_k": "attn.k",
    "attn1.to_v": "attn.v",
    "attn1.to_out.0": "attn.proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
}


def has_diffusers_names(weights: Mapping[str, Tensor]) -> bool:
    """Return whether the weights are named as in diffusers' DiTTransformer2DModel."""
    return "pos_embed.proj.weight" in weights and "transformer_blocks.0.norm1.linear.weight" in weights


def from_diffusers(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a DiTTransformer2DModel under the names that DiT's authors use.

    Diffusers stores the embeddings of time and label once per block. Raise ValueError if they differ, since a DiT has
    only one of each.
    """
    renamed: dict[str, Tensor] = {}
    for name, weight in weights.items():
        new = _original_name(name)
        if new in renamed and not torch.equal(renamed[new], weight):
            raise ValueError(
                f"all blocks must share their time and label embeddings, got {name}, which differs from the first "
                "block's: such a network cannot be ported"
            )
        renamed[new] = weight
    for name in [name for name in renamed if re.fullmatch(r"blocks\.\d+\.attn\.q\.(weight|bias)", name)]:
        parts = [name.replace(".attn.q.", f".attn.{part}.") for part in "qkv"]
        if all(part in renamed for part in parts):
            renamed[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat([renamed.pop(part) for part in parts])
    return renamed


def _original_name(name: str) -> str:
    """Return the authors' name for a weight, or the name itself if there is none."""
    block = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", name)
    if block is None:
        return _OUTER.get(name, name)
    if block[2].startswith("norm1.emb."):
        return _EMBEDDINGS.get(block[2].removeprefix("norm1.emb."), name)
    layer, _, kind = block[2].rpartition(".")
    return f"blocks.{block[1]}.{_IN_BLOCKS.get(layer, layer)}.{kind}"
