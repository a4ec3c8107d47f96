"""LPIPS distance, and features for Fréchet distances, from small ImageNet networks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from asyncdiff.evaluation.features.base import Features, to_uint8
from asyncdiff.evaluation.features.weights import (
    published_hash,
    read_tensors,
    read_weights,
    tensors_sha256,
    weight_file,
)
from asyncdiff.shapes import Image

Distances = Float[Tensor, " b"]

MIN_SIDE = 64  # shorter side of an image in pixels: LPIPS was fitted to human judgments of 64x64 patches
# Mean and standard deviation of ImageNet's colors, for pixels in [-1, 1].
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)

Net = Literal["alex", "squeeze"]


@dataclass(frozen=True)
class _PublishedNet:
    """Published backbone of LPIPS.

    Attributes:
        name: name of the network in torchvision.
        url: URL of torchvision's weight file.
        tensors: first digits of `tensors_sha256` of the convolutions, to recognize copies in other file formats.
        taps: indices of the layers whose outputs are compared.
        channels: numbers of channels of these outputs.
    """

    name: str
    url: str
    tensors: str
    taps: tuple[int, ...]
    channels: tuple[int, ...]


NETS: dict[str, _PublishedNet] = {
    "alex": _PublishedNet(
        "alexnet",
        "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        "8f089f8cba589c7c",
        (1, 4, 7, 9, 11),
        (64, 192, 384, 256, 256),
    ),
    "squeeze": _PublishedNet(
        "squeezenet",
        "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth",
        "463048c0c63f2e52",
        (1, 4, 7, 9, 10, 11, 12),
        (64, 128, 256, 384, 384, 512, 512),
    ),
}


class LPIPS(nn.Module):
    """Learned perceptual distance between pairs of images, 0 for equal ones (Zhang et al., arXiv:1801.03924).

    This is version 0.1 with the linear heads shipped by torchmetrics. Values outside [-1, 1] are clipped, gray images
    are repeated over three channels, and images smaller than 64 pixels are upsampled bilinearly by an integer factor:
    such distances are comparable with each other, but not with published ones.

    Args:
        net: backbone, either alex (AlexNet), which most papers use, or squeeze (SqueezeNet 1.1).
        weights: local file of torchvision's state dict, .pth or .safetensors, with or without the classifier (default:
            torchvision's file in $TORCH_HOME/hub/checkpoints, downloaded if absent).
        sha256: first 8 to 64 hex digits of the file's SHA-256, needed only if its tensors are not the published ones.

    Raises:
        FileNotFoundError: the weight file does not exist and cannot be downloaded.
        ValueError: the file does not contain the expected weights.
    """

    def __init__(self, net: Net = "alex", weights: str | None = None, sha256: str | None = None):
        super().__init__()
        self.net = net
        self.weights = weights
        self.sha256 = sha256
        self.backbone = _Backbone(net, weights, sha256)
        self.heads = nn.ParameterList(_read_heads(net))
        self.requires_grad_(False).eval()

    @property
    def name(self) -> str:
        """Name of the metric: lpips_alex or lpips_squeeze."""
        return f"lpips_{self.net}"

    @torch.no_grad()
    def forward(self, images: Image, others: Image) -> Distances:
        """Return the distance of each image from the corresponding image in `others`."""
        if images.shape != others.shape:
            raise ValueError(
                f"images and others must have the same shape, got {tuple(images.shape)} and {tuple(others.shape)}"
            )
        total = torch.zeros(len(images), device=images.device)
        pairs = zip(
            self.backbone(_network_input(images)), self.backbone(_network_input(others)), self.heads, strict=True
        )
        for a, b, head in pairs:
            total += ((_normalize_channels(a) - _normalize_channels(b)).square() * head).sum(1).mean((1, 2))
        return total


class BackboneFeatures(Features):
    """Activations of the last convolution of a small ImageNet network, averaged over the image: 512 or 256 features.

    A Fréchet distance in this space is not an FID, which is defined for one Inception network, and distances in
    different spaces are not comparable. Use these features to compare models with each other when Inception's weights
    are not available. Images are first rounded to 8 bits, as if they had been saved to files; gray and small images are
    processed as in `LPIPS`.

    Args:
        net: squeeze (SqueezeNet 1.1, 512 features) or alex (AlexNet, 256 features).
        weights: weight file, see `LPIPS`.
        sha256: first hex digits of its SHA-256, see `LPIPS`.

    Raises:
        FileNotFoundError: the weight file does not exist and cannot be downloaded.
        ValueError: the file does not contain the expected weights.
    """

    def __init__(self, net: Net = "squeeze", weights: str | None = None, sha256: str | None = None) -> None:
        super().__init__()
        self.net = net
        self.weights = weights
        self.sha256 = sha256
        self.backbone = _Backbone(net, weights, sha256)
        self.name = NETS[net].name
        self.dim = NETS[net].channels[-1]
        self.requires_grad_(False).eval()

    def forward(self, images: Image) -> Float[Tensor, "b d"]:
        """Return the features of each image, (b, dim); images have 1 or 3 channels."""
        *_, last = self.backbone(_network_input(to_uint8(images) / 127.5 - 1))
        return last.mean((2, 3))

    def preprocessing(self) -> dict[str, Any]:
        resize = f"bilinear, by a whole factor, to {MIN_SIDE} pixels and more"
        return {"rounding": "8 bits", "resize": resize, "range": "ImageNet's mean and spread"}


def upsampling_factor(height: int, width: int) -> int:
    """Return the integer factor by which images of this size are upsampled for the network."""
    return -(-MIN_SIDE // min(height, width))


class _Backbone(nn.Module):
    """Convolutions of a network, with weights from a file, that yield the compared outputs."""

    shift: Tensor
    scale: Tensor

    def __init__(self, net: Net, weights: str | None, sha256: str | None):
        super().__init__()
        if net not in NETS:
            raise ValueError(f"net must be alex or squeeze, got {net!r}: choose one of them")
        self.taps = NETS[net].taps
        self.layers = _build_layers(net)
        state = _read_convolutions(net, weight_file(weights, url=NETS[net].url), sha256)
        try:
            self.layers.load_state_dict(state)
        except RuntimeError as error:
            kind = NETS[net].name
            raise ValueError(
                f"weights do not fit torchvision's {kind}: pass those of this network, or change net"
            ) from error
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None])
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None])

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Iterator[Float[Tensor, "b c fh fw"]]:
        """Yield the outputs of the compared layers."""
        x = (images - self.shift) / self.scale
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i in self.taps:
                yield x


def _build_layers(net: Net) -> nn.Sequential:
    """Return the layers up to the last compared one; the global random state is not changed."""
    from torchvision import models  # slow to import

    build: dict[str, Callable[..., nn.Module]] = {"alex": models.alexnet, "squeeze": models.squeezenet1_1}
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        layers = build[net](weights=None).features
    assert isinstance(layers, nn.Sequential)
    for layer in layers:
        if isinstance(layer, nn.ReLU):
            layer.inplace = False  # otherwise it would overwrite outputs to compare
    return layers[: NETS[net].taps[-1] + 1]


def _read_convolutions(net: Net, path: Path, sha256: str | None) -> dict[str, Tensor]:
    """Read the weights of the convolutions, and raise ValueError unless they are published or match `sha256`."""
    if path.suffix == ".safetensors":
        state = _select_convolutions(read_tensors(path, sha256=sha256))
        if sha256 is None and not tensors_sha256(state).startswith(NETS[net].tensors):
            raise ValueError(
                f"{path} does not contain the published weights of {NETS[net].name}: "
                "pass the file's own SHA-256 as sha256 if you trust it"
            )
        return state
    return _select_convolutions(read_weights(path, sha256=sha256 or published_hash(NETS[net].url)))


def _select_convolutions(state: dict[str, Tensor]) -> dict[str, Tensor]:
    part = "features."
    return {name.removeprefix(part): value for name, value in state.items() if name.startswith(part)}


def _read_heads(net: Net) -> list[Float[Tensor, "c 1 1"]]:
    """Return the linear heads of version 0.1, with one weight per channel of each compared layer."""
    folder = resources.files("torchmetrics.functional.image") / "lpips_models"
    with (folder / f"{net}.pth").open("rb") as file:
        state = torch.load(file, map_location="cpu", weights_only=True)
    return [state[f"lin{i}.model.1.weight"][0] for i in range(len(NETS[net].taps))]


def _network_input(images: Image) -> Float[Tensor, "b 3 height width"]:
    """Convert images to those that an ImageNet network expects: in color, clipped, not too small."""
    if images.shape[1] not in (1, 3):
        raise ValueError(f"images must have 1 or 3 channels, got {images.shape[1]}: decode latents to pixels first")
    color = images.float().clamp(-1, 1).expand(-1, 3, -1, -1)
    factor = upsampling_factor(images.shape[2], images.shape[3])
    return color if factor == 1 else F.interpolate(color, scale_factor=factor, mode="bilinear", align_corners=False)


def _normalize_channels(activations: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Normalize the channel vector at each position to unit length."""
    return activations / (activations.square().sum(1, keepdim=True) + 1e-8).sqrt()
