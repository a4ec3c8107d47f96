"""Reference DiT (arXiv:2212.09748, section 3; SiT has the same network) with the parameter names of its authors.

It follows the equations directly, in the precision of the weights, and serves to test ported networks.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Standard deviation of the first time layer, as in the paper's initialization. In float32, implementations round angles
# up to 1000 differently, by up to 6e-5, which larger weights would show in the fifth digit of the output.
TIME = 0.02


def random_weights(
    dim: int = 32,
    depth: int = 2,
    channels: int = 4,
    patch: int = 2,
    side: int = 4,
    classes: int = 10,
    sigma: bool = True,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Tensor]:
    """Return random nonzero weights for `side` x `side` tokens; `sigma` doubles the output channels."""
    outputs = channels * (2 if sigma else 1)
    layers: dict[str, tuple[int, ...]] = {
        "x_embedder.proj": (dim, channels, patch, patch),
        "t_embedder.mlp.0": (dim, 256),
        "t_embedder.mlp.2": (dim, dim),
        "final_layer.adaLN_modulation.1": (2 * dim, dim),
        "final_layer.linear": (patch * patch * outputs, dim),
    }
    for k in range(depth):
        layers |= {
            f"blocks.{k}.attn.qkv": (3 * dim, dim),
            f"blocks.{k}.attn.proj": (dim, dim),
            f"blocks.{k}.mlp.fc1": (4 * dim, dim),
            f"blocks.{k}.mlp.fc2": (dim, 4 * dim),
            f"blocks.{k}.adaLN_modulation.1": (6 * dim, dim),
        }
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    weights = {"pos_embed": positions(side, dim).to(dtype)[None]}
    weights["y_embedder.embedding_table.weight"] = normal(classes + 1, dim)
    for name, shape in layers.items():
        spread = TIME if name == "t_embedder.mlp.0" else 1 / math.sqrt(math.prod(shape[1:]))
        weights[f"{name}.weight"] = spread * normal(*shape)
        weights[f"{name}.bias"] = 0.1 * normal(shape[0])
    return weights


def positions(side: int, dim: int) -> Tensor:
    """Return sines and cosines of the column, then of the row, of every token in raster order."""
    frequency = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows, columns = (
        line.flatten() for line in torch.meshgrid(*[torch.arange(side, dtype=torch.float64)] * 2, indexing="ij")
    )
    parts = [wave(axis[:, None] * frequency) for axis in (columns, rows) for wave in (torch.sin, torch.cos)]
    return torch.cat(parts, 1)


def forward(w: dict[str, Tensor], x: Tensor, time: Tensor, label: Tensor, heads: int, base: float = 128.0) -> Tensor:
    """Return the network's output at times (b,), including the learned sigma; frequencies are 10000^(-i / base)."""
    patch = w["x_embedder.proj.weight"].shape[3]
    angle = time[:, None] * 10000.0 ** -(torch.arange(128, dtype=x.dtype) / base)
    waves = torch.cat([angle.cos(), angle.sin()], 1)
    c = linear(w, "t_embedder.mlp.2", F.silu(linear(w, "t_embedder.mlp.0", waves)))
    c = F.silu(c + w["y_embedder.embedding_table.weight"][label])
    h = F.conv2d(x, w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=patch).flatten(2).transpose(1, 2)
    h = h + w["pos_embed"]
    for k in range(sum(name.endswith("attn.qkv.weight") for name in w)):
        shift1, scale1, gate1, shift2, scale2, gate2 = chunks(w, f"blocks.{k}.adaLN_modulation.1", c, 6)
        h = h + gate1 * attention(w, f"blocks.{k}.attn", norm(h) * (1 + scale1) + shift1, heads)
        hidden = F.gelu(linear(w, f"blocks.{k}.mlp.fc1", norm(h) * (1 + scale2) + shift2), approximate="tanh")
        h = h + gate2 * linear(w, f"blocks.{k}.mlp.fc2", hidden)
    shift, scale = chunks(w, "final_layer.adaLN_modulation.1", c, 2)
    pixels = linear(w, "final_layer.linear", norm(h) * (1 + scale) + shift)
    side = math.isqrt(h.shape[1])
    pixels = pixels.reshape(len(x), side, side, patch, patch, -1)  # pixels of a token: row, column, channel
    return pixels.permute(0, 5, 1, 3, 2, 4).reshape(len(x), -1, side * patch, side * patch)


def linear(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def chunks(w: dict[str, Tensor], name: str, c: Tensor, count: int) -> list[Tensor]:
    return [part[:, None] for part in linear(w, name, c).chunk(count, dim=1)]


def norm(h: Tensor) -> Tensor:
    return F.layer_norm(h, h.shape[-1:], eps=1e-6)


def attention(w: dict[str, Tensor], name: str, h: Tensor, heads: int) -> Tensor:
    b, n, dim = h.shape
    q, k, v = linear(w, f"{name}.qkv", h).reshape(b, n, 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
    share = (q @ k.transpose(2, 3) / math.sqrt(dim // heads)).softmax(-1)
    return linear(w, f"{name}.proj", (share @ v).transpose(1, 2).reshape(b, n, dim))
