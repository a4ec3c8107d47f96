"""Pooled features from any timm network, such as DINOv2."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asyncdiff.checkpoints.loaded_tensors import check_tensors
from asyncdiff.checks import at_least
from asyncdiff.evaluation.features.base import FeatureArray, Features, as_rgb, isolated_rng, to_uint8
from asyncdiff.evaluation.features.weights import read_tensors
from asyncdiff.shapes import Image

FILTERS = ("bilinear", "bicubic")


class TimmFeatures(Features):
    """Pooled features from a timm network before its classifier; for DINOv2, the class token.

    Fréchet distances in the space of DINOv2 (arXiv:2306.04675) agree better with human judgment than Inception's on
    images unlike those of ImageNet. Distances are not comparable across networks, sizes or filters; `fingerprint`
    contains all three.

    Images are first rounded to 8 bits, as if they had been saved to files; gray images are repeated over three
    channels. The full image, not a center crop, is then resized to the network's input size with the network's own
    filter (antialiased when shrinking), clipped to [0, 255], and normalized with the network's own mean and standard
    deviation.

    Args:
        model: name of the timm model, such as vit_small_patch14_dinov2.lvd142m.
        weights: local file with timm's state dict, .safetensors or written by torch.save.
        sha256: first 8 to 64 hex digits of that file's SHA-256, None to accept any file.
        pretrained: whether timm downloads pretrained weights; without them and without a file the weights are random.
        size: side of the network's input in pixels (default: the network's own).

    Raises:
        ValueError: the model is unknown, the weights or the size do not fit it, or its filter is not supported.
        FileNotFoundError: the weight file does not exist or cannot be downloaded.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: str,
        weights: str | None = None,
        sha256: str | None = None,
        pretrained: bool = False,
        size: int | None = None,
    ) -> None:
        from timm.data import resolve_model_data_config  # slow to import

        super().__init__()
        self.model, self.weights, self.sha256, self.pretrained = model, weights, sha256, pretrained
        if weights is not None and pretrained:
            raise ValueError(f"weights and pretrained exclude each other, got both for {model}: omit one")
        if sha256 is not None and weights is None:
            raise ValueError(f"sha256 needs a weight file, got sha256 {sha256} alone: pass the file as weights")
        if size is not None:
            at_least("size", size, 1, "omit size to use the network's own")
        network: Any = _create_network(model, _read_state(weights, sha256), pretrained, size)
        self.network = network
        self.requires_grad_(False).eval()
        self.name = model.split(".")[0].rsplit("/", 1)[-1]
        patch = getattr(getattr(network, "patch_embed", None), "patch_size", (1,))[0]
        if size is not None and size % patch:
            raise ValueError(
                f"size must be a multiple of the patch size of {model}, {patch} pixels, got {size}: "
                f"use {max(1, round(size / patch)) * patch}, for example"
            )
        self.dim = int(getattr(network, "head_hidden_size", network.num_features))
        settings = resolve_model_data_config(network)
        self.size = size or int(settings["input_size"][-1])
        self.filter = settings["interpolation"]
        if self.filter not in FILTERS:
            raise ValueError(
                f"{model} resizes images with filter {self.filter}, but only {' and '.join(FILTERS)} are supported: "
                "choose another model"
            )
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(settings[name], dtype=torch.float32)[:, None, None])

    def forward(self, images: Image) -> FeatureArray:
        levels = to_uint8(as_rgb(images)).float()
        if levels.shape[2:] != (self.size, self.size):
            levels = F.interpolate(levels, (self.size, self.size), mode=self.filter, antialias=True).clamp(0, 255)
        return self.network((levels / 255 - self.mean) / self.std)

    def preprocessing(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "rounding": "8 bits",
            "resize": f"{self.filter}, antialiased",
            "size": [self.size, self.size],
            "range": "the network's own mean and spread",
        }


def _read_state(weights: str | None, sha256: str | None) -> dict[str, Tensor] | None:
    if weights is None:
        return None
    if not Path(weights).is_file():
        raise FileNotFoundError(
            f"weights {weights} is not a file: check the path, or omit it and set pretrained to true"
        )
    return read_tensors(Path(weights), sha256=sha256)


def _create_network(model: str, state: dict[str, Tensor] | None, pretrained: bool, size: int | None) -> nn.Module:
    """Create the network without its classifier, with one-line errors in place of timm's exceptions."""
    import timm  # slow to import

    if not timm.is_model(model):
        raise ValueError(f"model must be the name of a timm model, got {model}: timm.list_models() lists them")
    options: dict[str, Any] = {} if state is None else {"pretrained_cfg_overlay": {"state_dict": state}}
    # Convolutional networks accept any image size; position embeddings of transformers are built for one size.
    published = timm.get_pretrained_cfg(model)
    if size is not None and published is not None and published.fixed_input_size:
        options["img_size"] = size
    try:
        with isolated_rng(0):
            network: nn.Module = timm.create_model(
                model, pretrained=pretrained or state is not None, num_classes=0, **options
            )
    except (OSError, RuntimeError, ValueError, AssertionError) as error:
        line = str(error).strip().split("\n")[0]
        if pretrained:
            raise FileNotFoundError(
                f"timm cannot download the weights of {model}: {line}; pass a local file as weights"
            ) from error
        raise ValueError(f"weights or size do not fit timm's {model}: {line}") from error
    source, buffers = f"the weights of {model}", dict(network.named_buffers())
    check_tensors(network.state_dict(), source, "pass another file as weights", buffers=buffers)
    return network
