"""Pooled features of any timm network, such as DINOv2."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asyncdiff.checks import at_least
from asyncdiff.evaluation.features.base import FeatureRows, Features, isolated_rng, to_uint8
from asyncdiff.evaluation.features.weights import read_tensors
from asyncdiff.shapes import Image

FILTERS = ("bilinear", "bicubic")


class TimmFeatures(Features):
    """Pooled features of a timm network before its classifier; for DINOv2 the class token.

    For Fréchet distances in the space of DINOv2 (arXiv:2306.04675), which agree better with human judgment than
    Inception's on images other than ImageNet's. Distances are not comparable across networks, sizes or filters;
    `fingerprint` contains all three.

    Images are rounded to 8 bits first, as if they had been saved to files; gray images are repeated over three
    channels. The full image, not a center crop, is then resized to the network's input size with the network's own
    filter (antialiased when shrinking), clipped to [0, 255], and normalized by the network's own mean and standard
    deviation.

    Args:
        model: timm model name, such as vit_small_patch14_dinov2.lvd142m.
        weights: local file of timm's state dict, .safetensors or written by torch.save.
        sha256: first 8 to 64 hex digits of that file's SHA-256, None to accept any file.
        pretrained: let timm download the pretrained weights; without them and without a file the weights are random.
        size: side of the network's input in pixels (default: the network's own).

    Raises:
        ValueError: there is no such network, the weights or the size do not fit it, or its filter is unknown.
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
        super().__init__()
        self.model, self.weights, self.sha256, self.pretrained = model, weights, sha256, pretrained
        if weights is not None and pretrained:
            raise ValueError(f"pretrained must be false if weights is a file, got both for {model}: choose one")
        if sha256 is not None and weights is None:
            raise ValueError(f"sha256 must be given together with weights, got only {sha256}: pass the file as weights")
        if size is not None:
            at_least("size", size, 1, "leave it out for the network's own size")
        self.network = _network(model, _state(weights, sha256), pretrained, size)
        self.requires_grad_(False).eval()
        self.name = model.split(".")[0].rsplit("/", 1)[-1]
        network: Any = self.network
        patch = getattr(getattr(network, "patch_embed", None), "patch_size", (1,))[0]
        if size is not None and size % patch:
            raise ValueError(f"size must be a multiple of {model}'s patch size of {patch} pixels, got {size}: round it")
        self.dim = int(getattr(network, "head_hidden_size", network.num_features))
        settings = _settings(self.network)
        self.size = size or int(settings["input_size"][-1])
        self.filter = settings["interpolation"]
        if self.filter not in FILTERS:
            raise ValueError(
                f"model must resize by {' or '.join(FILTERS)}, got {self.filter} for {model}: use another one"
            )
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(settings[name], dtype=torch.float32)[:, None, None])

    def forward(self, images: Image) -> FeatureRows:
        """Return one row of `dim` features per image with 1 or 3 channels."""
        if images.shape[1] not in (1, 3):
            raise ValueError(f"images must have 1 or 3 channels, got {images.shape[1]}: decode latents to pixels first")
        levels = to_uint8(images).expand(-1, 3, -1, -1).float()
        if levels.shape[2:] != (self.size, self.size):
            levels = F.interpolate(levels, (self.size, self.size), mode=self.filter, antialias=True).clamp(0, 255)
        rows: Tensor = self.network((levels / 255 - self.mean) / self.std)
        return rows

    def preprocessing(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "rounding": "8 bits",
            "resize": f"{self.filter}, antialiased",
            "size": [self.size, self.size],
            "range": "the network's own mean and spread",
        }


def _state(weights: str | None, sha256: str | None) -> dict[str, Tensor] | None:
    if weights is None:
        return None
    if not Path(weights).is_file():
        raise FileNotFoundError(f"weights must be an existing file, got {weights}: download timm's and pass its path")
    return read_tensors(Path(weights), sha256=sha256)


def _network(model: str, state: dict[str, Tensor] | None, pretrained: bool, size: int | None) -> nn.Module:
    """Create the network without its classifier; turn timm's exceptions into one-line errors."""
    import timm  # late: it takes seconds

    if not timm.is_model(model):
        raise ValueError(f"model must be a timm model, got {model}: timm.list_models() lists their names")
    options: dict[str, Any] = {} if state is None else {"pretrained_cfg_overlay": {"state_dict": state}}
    # Convolutional networks take images of any size; position embeddings of transformers are built for one size.
    published = timm.get_pretrained_cfg(model)
    if size is not None and published is not None and published.fixed_input_size:
        options["img_size"] = size
    try:
        with isolated_rng(0):
            network = timm.create_model(model, pretrained=pretrained or state is not None, num_classes=0, **options)
    except (OSError, RuntimeError, ValueError, AssertionError) as error:
        line = str(error).strip().split("\n")[0]
        if pretrained:
            raise FileNotFoundError(
                f"weights must be a local file if timm cannot download those of {model}, got {line}: pass its path"
            ) from error
        raise ValueError(f"weights and size must fit timm's {model}, got {line}: check both") from error
    assert isinstance(network, nn.Module)
    return network


def _settings(network: nn.Module) -> dict[str, Any]:
    from timm.data import resolve_model_data_config

    settings: dict[str, Any] = resolve_model_data_config(network)
    return settings
