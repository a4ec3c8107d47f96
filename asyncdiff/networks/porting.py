"""Port weights of DiT (arXiv:2212.09748) and SiT (arXiv:2401.08740) to `asyncdiff.networks.DiT`.

The noise level takes the role of the time step.

The networks compute the same function in different conventions. The weights absorb each difference exactly:

| | original | asyncdiff | absorbed by |
|---|---|---|---|
| positions | sin column, cos column, sin row, cos row | cos row, sin row, cos column, ... | the order of channels |
| a token's pixels | row, column, channel | channel, row, column | the order of the head's rows |
| time | linear in t | `level_scale` times t | a rotation of the first layer's sines and cosines |
| output | the noise, or image minus noise | the same, or noise minus image | the sign of the head |

The order of channels between the first layer and the head is free: LayerNorm without weights does not depend on it.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from asyncdiff.networks.dit import DiT
from asyncdiff.networks.embeddings import MAX_PERIOD, grid_positions

Weights = dict[str, Tensor]

HEADS = {
    384: 6,
    768: 12,
    1024: 16,
    1152: 16,
}  # number of heads by width for S, B, L and XL; not contained in the weights
CLASSES = 1000  # of the official models, which were trained on ImageNet
FREQUENCIES = 256
ROUNDING = 4e-3  # tolerance for positions stored in bfloat16; learned positions differ by far more
MAX_NAMES = 3  # maximum number of weights named in an error message


@dataclass(frozen=True)
class Convention:
    """Conventions of a checkpoint that cannot be read from its weights.

    Attributes:
        slope: slope of the network's time input, `slope` t + `offset`.
        offset: time input at t = 0.
        sign: sign of the network's output relative to the target.
        period: longest period of the time embedding.
    """

    slope: float
    offset: float
    sign: int = 1
    period: float = MAX_PERIOD


DIT = Convention(1000.0, -1.0)  # time step k is the state after k + 1 of 1000 noising steps
SIT = Convention(-1.0, 1.0, sign=-1)  # time 1 is the image, and the velocity points towards it


@dataclass(frozen=True)
class PortedNetwork:
    """Result of porting a checkpoint.

    Attributes:
        network: DiT with the ported weights.
        image_size: side of the images that the network was trained on.
        dropped: number of dropped output channels, those of the learned sigma.
    """

    network: DiT
    image_size: int
    dropped: int


@dataclass(frozen=True)
class _Sizes:
    """Sizes of a network, read from the shapes of the authors' weights."""

    channels: int
    patch: int
    dim: int
    depth: int
    hidden: int
    classes: int
    outputs: int

    @classmethod
    def of(cls, weights: Weights) -> "_Sizes":
        dim, channels, patch, _ = _shape(weights, "x_embedder.proj.weight", 4)
        return cls(
            channels=channels,
            patch=patch,
            dim=dim,
            depth=len({match[1] for name in weights if (match := re.match(r"blocks\.(\d+)\.", name))}),
            hidden=_shape(weights, "blocks.0.mlp.fc1.weight", 2)[0],
            classes=_shape(weights, "y_embedder.embedding_table.weight", 2)[0] - 1,
            outputs=_shape(weights, "final_layer.linear.weight", 2)[0] // patch**2,
        )

    def layers(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield the name and weight shape of every linear layer, by the authors' names."""
        d = self.dim
        yield "x_embedder.proj", (d, self.channels, self.patch, self.patch)
        yield "t_embedder.mlp.0", (d, FREQUENCIES)
        yield "t_embedder.mlp.2", (d, d)
        for k in range(self.depth):
            yield f"blocks.{k}.attn.qkv", (3 * d, d)
            yield f"blocks.{k}.attn.proj", (d, d)
            yield f"blocks.{k}.mlp.fc1", (self.hidden, d)
            yield f"blocks.{k}.mlp.fc2", (d, self.hidden)
            yield f"blocks.{k}.adaLN_modulation.1", (6 * d, d)
        yield "final_layer.adaLN_modulation.1", (2 * d, d)
        yield "final_layer.linear", (self.patch**2 * self.outputs, d)


def has_original_names(weights: Mapping[str, Tensor]) -> bool:
    """Return whether the weights are named as in the code by DiT's and SiT's authors."""
    return "x_embedder.proj.weight" in weights and "blocks.0.adaLN_modulation.1.weight" in weights


def port_weights(
    weights: Weights,
    convention: Convention,
    *,
    heads: int | None = None,
    image_size: int | None = None,
    classes: int | None = None,
) -> PortedNetwork:
    """Build a DiT with the authors' weights, in their precision but at least float32.

    Args:
        weights: weights under the authors' names; `asyncdiff.networks.diffusers_keys` renames those from diffusers.
        convention: `DIT`, `SIT`, or a custom one.
        heads: number of attention heads; by default that of the official model of this width.
        image_size: side of the images; needed if the weights contain no position embedding.
        classes: number of classes, without "no label"; by default that of the official models, if it fits.

    Returns:
        The network, its image size and the number of dropped output channels.
    """
    sizes = _Sizes.of(weights)
    _check(weights, sizes)
    if heads is None and sizes.dim not in HEADS:
        raise ValueError(
            f"no official model has a width of {sizes.dim}, so the number of heads is unknown: add --heads"
        )
    _check_classes(sizes.classes + 1, classes)
    with torch.device("meta"):  # its initial weights would be discarded
        network = DiT(
            channels=sizes.channels,
            patch_size=sizes.patch,
            dim=sizes.dim,
            depth=sizes.depth,
            heads=heads or HEADS[sizes.dim],
            mlp_ratio=_mlp_ratio(sizes.hidden, sizes.dim),
            classes=sizes.classes,
            joint_labels=True,
            level_scale=abs(convention.slope),
            level_period=convention.period,
        )
    exact = {name: w.to(torch.promote_types(w.dtype, torch.float32)) for name, w in weights.items()}
    network.load_state_dict(dict(_convert_weights(exact, sizes, convention)), assign=True)
    return PortedNetwork(network, _image_size(weights, sizes, image_size), sizes.outputs - sizes.channels)


def _shape(weights: Weights, name: str, axes: int) -> tuple[int, ...]:
    if name not in weights or weights[name].ndim != axes:
        raise ValueError(
            f"weights must be those of a DiT, got no {name} with {axes} axes: use a checkpoint of DiT or SiT"
        )
    return tuple(weights[name].shape)


def _check(weights: Weights, sizes: _Sizes) -> None:
    """Raise ValueError unless the weights are exactly those of a DiT of these sizes."""
    expected: dict[str, tuple[int, ...]] = {"y_embedder.embedding_table.weight": (sizes.classes + 1, sizes.dim)}
    for layer, shape in sizes.layers():
        expected |= {f"{layer}.weight": shape, f"{layer}.bias": shape[:1]}
    if missing := [name for name in expected if name not in weights]:
        raise ValueError(f"weights must be complete, got no {_list_names(missing)}: download the file again")
    if foreign := [name for name in weights if name not in expected and name != "pos_embed"]:
        raise ValueError(
            f"weights must be those of a plain DiT, got also {_list_names(foreign)}: use a checkpoint of DiT or SiT"
        )
    for name, shape in expected.items():
        if tuple(weights[name].shape) != shape:
            raise ValueError(
                f"{name} must have shape {shape} to fit the other weights, got {tuple(weights[name].shape)}: use a "
                "checkpoint of DiT or SiT"
            )
    if sizes.outputs not in (sizes.channels, 2 * sizes.channels):
        raise ValueError(
            f"the network must have as many output as input channels, or twice as many with a learned sigma, got "
            f"{sizes.outputs} for {sizes.channels} input channels: use a checkpoint of DiT or SiT"
        )


def _check_classes(rows: int, classes: int | None) -> None:
    """Raise ValueError unless the label table has a row per class, and after these one for "no label"."""
    if classes is None and rows != CLASSES + 1:
        raise ValueError(
            f"the label table has {rows} rows, so the number of classes is unknown, {rows} or {rows - 1} and one for "
            "no label: add --classes"
        )
    if rows == classes:
        raise ValueError(
            f"the label table must have a row for no label after those of the {classes} classes, got {rows} rows: a "
            "network trained without label dropout predicts nothing without labels, as guidance needs, and cannot be "
            "ported"
        )
    if classes is not None and rows != classes + 1:
        raise ValueError(
            f"classes must be {rows - 1}, one less than the rows of the label table, got {classes}: correct it"
        )


def _image_size(weights: Weights, sizes: _Sizes, image_size: int | None) -> int:
    """Return the side of the images, from the stored positions or, without them, from the argument."""
    if "pos_embed" not in weights:
        if image_size is None:
            raise ValueError("the weights contain no positions, so the image size is unknown: add --image_size")
        return image_size
    stored = weights["pos_embed"]
    side = math.isqrt(stored.numel() // sizes.dim)
    expected = grid_positions((side, side), sizes.dim, stored.device)
    if stored.numel() != expected.numel():
        raise ValueError(
            f"pos_embed must be for a square grid of tokens, got shape {tuple(stored.shape)}: others cannot be ported"
        )
    reordered = stored.reshape(expected.shape)[:, _channel_order(sizes.dim)]
    if not (reordered.float() - expected).abs().amax() < ROUNDING:
        raise ValueError(
            "pos_embed must contain DiT's sines and cosines, got other positions: learned positions cannot be ported"
        )
    if image_size is not None and image_size != side * sizes.patch:
        raise ValueError(
            f"image_size must be {side * sizes.patch}, according to the positions in the weights, got {image_size}: "
            "omit --image_size"
        )
    return side * sizes.patch


def _convert_weights(w: Weights, sizes: _Sizes, convention: Convention) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and value of every weight of `asyncdiff.networks.DiT`."""
    order = _channel_order(sizes.dim)
    yield "embed.weight", w["x_embedder.proj.weight"].flatten(1)[order]
    yield "embed.bias", w["x_embedder.proj.bias"][order]
    yield "level_embedding.first.weight", _rotate_time(w["t_embedder.mlp.0.weight"], convention)
    yield "level_embedding.first.bias", w["t_embedder.mlp.0.bias"]
    yield "level_embedding.second.weight", w["t_embedder.mlp.2.weight"]
    yield "level_embedding.second.bias", w["t_embedder.mlp.2.bias"]
    yield "label_embedding.table.weight", w["y_embedder.embedding_table.weight"]
    for k in range(sizes.depth):
        at = f"blocks.{k}"
        yield f"{at}.attention.qkv.weight", w[f"{at}.attn.qkv.weight"][:, order]
        yield f"{at}.attention.qkv.bias", w[f"{at}.attn.qkv.bias"]
        yield f"{at}.mlp.fc1.weight", w[f"{at}.mlp.fc1.weight"][:, order]
        yield f"{at}.mlp.fc1.bias", w[f"{at}.mlp.fc1.bias"]
        for kind in ("weight", "bias"):
            yield f"{at}.attention.proj.{kind}", w[f"{at}.attn.proj.{kind}"][order]
            yield f"{at}.mlp.fc2.{kind}", w[f"{at}.mlp.fc2.{kind}"][order]
            yield f"{at}.modulation.linear.{kind}", _reorder_chunks(w[f"{at}.adaLN_modulation.1.{kind}"], 6, order)
    for kind in ("weight", "bias"):
        yield f"final_modulation.linear.{kind}", _reorder_chunks(w[f"final_layer.adaLN_modulation.1.{kind}"], 2, order)
        yield f"head.{kind}", convention.sign * _convert_head(w[f"final_layer.linear.{kind}"], sizes, order)


def _channel_order(dim: int) -> Tensor:
    """Return each channel's original index; the original quarters are sin column, cos column, sin row, cos row."""
    return torch.arange(dim).reshape(4, -1).flip(0).flatten()


def _reorder_chunks(rows: Tensor, count: int, order: Tensor) -> Tensor:
    """Reorder the channels of each of `count` vectors that are stacked along the rows."""
    return rows.unflatten(0, (count, -1))[:, order].flatten(0, 1)


def _convert_head(rows: Tensor, sizes: _Sizes, order: Tensor) -> Tensor:
    """Convert the head's weight or bias: move channel before row and column, and drop the channels of sigma."""
    cells = rows.unflatten(0, (sizes.patch, sizes.patch, sizes.outputs))[:, :, : sizes.channels]
    converted = cells.movedim(2, 0).flatten(0, 2)
    return converted[:, order] if converted.ndim == 2 else converted


def _rotate_time(weight: Tensor, convention: Convention) -> Tensor:
    """Convert the first layer to take sines and cosines of |slope| t instead of slope t + offset."""
    exact = weight.double()
    cosine, sine = exact.chunk(2, dim=1)
    half = FREQUENCIES // 2
    frequency = torch.exp(-math.log(convention.period) / half * torch.arange(half, dtype=torch.float64))
    c, s = (convention.offset * frequency).cos(), (convention.offset * frequency).sin()
    direction = math.copysign(1.0, convention.slope)
    return torch.cat([cosine * c + sine * s, direction * (sine * c - cosine * s)], dim=1).to(weight.dtype)


def _mlp_ratio(hidden: int, dim: int) -> float:
    """Return an `mlp_ratio` with int(dim * mlp_ratio) == hidden."""
    ratio = hidden / dim
    return ratio if int(dim * ratio) == hidden else math.nextafter(ratio, math.inf)


def _list_names(names: list[str]) -> str:
    """Format the first names, and the number of further ones."""
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more
