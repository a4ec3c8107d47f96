"""LPIPS, and features for Fréchet distances, from small ImageNet networks."""

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

SMALLEST = 64  # pixels of the shorter side: LPIPS was fitted to human judgments of 64x64 patches
# Mean and standard deviation of ImageNet's colors, for pixels in [-1, 1].
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)

Net = Literal["alex", "squeeze"]


@dataclass(frozen=True)
class _Published:
    """A published backbone.

    Attributes:
        name: torchvision's name.
        url: torchvision's weight file.
        tensors: first digits of the SHA-256 of the convolutions, which identifies copies in other containers.
        taps: indices of the layers whose outputs are compared.
        channels: their numbers of channels.
    """

    name: str
    url: str
    tensors: str
    taps: tuple[int, ...]
    channels: tuple[int, ...]


NETS: dict[str, _Published] = {
    "alex": _Published(
        "alexnet",
        "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        "8f089f8cba589c7c",
        (1, 4, 7, 9, 11),
        (64, 192, 384, 256, 256),
    ),
    "squeeze": _Published(
        "squeezenet",
        "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth",
        "463048c0c63f2e52",
        (1, 4, 7, 9, 10, 11, 12),
        (64, 128, 256, 384, 384, 512, 512),
    ),
}


class LPIPS(nn.Module):
    """Learned perceptual distance of pairs of images, 0 for equal ones (Zhang et al., arXiv:1801.03924).

    Version 0.1 with the linear heads that torchmetrics ships. Values outside [-1, 1] are clipped, gray images are
    repeated over three channels, and images smaller than 64 pixels are upsampled bilinearly by an integer factor: such
    distances are comparable with each other, not with published ones.

    Args:
        net: alex, which most papers report, or squeeze.
        weights: local file of torchvision's state dict, .pth or .safetensors, with or without the classifier (default:
            torchvision's file in $TORCH_HOME/hub/checkpoints, downloaded if absent).
        sha256: first 8 to 64 hex digits of the file's SHA-256, for a file whose tensors are not the published ones.

    Raises:
        FileNotFoundError: there is no file and it cannot be downloaded.
        ValueError: the file does not contain the expected weights.
    """

    def __init__(self, net: Net = "alex", weights: str | None = None, sha256: str | None = None):
        super().__init__()
        self.net = net
        self.weights = weights
        self.sha256 = sha256
        self.backbone = _Backbone(net, weights, sha256)
        self.heads = nn.ParameterList(_heads(net))
        self.requires_grad_(False).eval()

    @property
    def name(self) -> str:
        """Name of the distance: lpips_alex or lpips_squeeze."""
        return f"lpips_{self.net}"

    @torch.no_grad()
    def forward(self, images: Image, others: Image) -> Distances:
        """Return the distance of each image from the corresponding one of `others`."""
        if images.shape != others.shape:
            raise ValueError(
                f"others must have the shape of images, got {tuple(others.shape)} for {tuple(images.shape)}"
            )
        total = torch.zeros(len(images), device=images.device)
        pairs = zip(
            self.backbone(_network_input(images)), self.backbone(_network_input(others)), self.heads, strict=True
        )
        for a, b, head in pairs:
            total += ((_unit(a) - _unit(b)).square() * head).sum(1).mean((1, 2))
        return total


class BackboneFeatures(Features):
    """Activations of the last convolution of a small ImageNet network, averaged over the image: 512 or 256 features.

    A Fréchet distance in this space is not an FID, which is defined in the space of one Inception network. Distances in
    different spaces are not comparable. Use these features to compare models with each other when Inception's weights
    are not available. Images are rounded to 8 bits first, as if they had been saved to files; gray and small images are
    processed as in `LPIPS`.

    Args:
        net: squeeze (SqueezeNet 1.1, 512 features) or alex (AlexNet, 256).
        weights: as for `LPIPS`.
        sha256: as for `LPIPS`.

    Raises:
        FileNotFoundError: there is no file and it cannot be downloaded.
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
        """Return one row of `dim` features per image with 1 or 3 channels."""
        *_, last = self.backbone(_network_input(to_uint8(images) / 127.5 - 1))
        return last.mean((2, 3))

    def preprocessing(self) -> dict[str, Any]:
        resize = f"bilinear, by a whole factor, to {SMALLEST} pixels and more"
        return {"rounding": "8 bits", "resize": resize, "range": "ImageNet's mean and spread"}


def enlargement(height: int, width: int) -> int:
    """Return the integer factor by which images of this size are upsampled before the network."""
    return -(-SMALLEST // min(height, width))


class _Backbone(nn.Module):
    """Convolutions of a network, with the weights of a file."""

    shift: Tensor
    scale: Tensor

    def __init__(self, net: Net, weights: str | None, sha256: str | None):
        super().__init__()
        if net not in NETS:
            raise ValueError(f"net must be alex or squeeze, got {net!r}: choose one of them")
        self.taps = NETS[net].taps
        self.layers = _architecture(net)
        state = _features(net, weight_file(weights, url=NETS[net].url), sha256)
        try:
            self.layers.load_state_dict(state)
        except RuntimeError as error:
            kind = NETS[net].name
            raise ValueError(f"weights must be a state dict of torchvision's {kind}, got other tensors") from error
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None])
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None])

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Iterator[Float[Tensor, "b c fh fw"]]:
        """Yield the outputs of the layers that are compared."""
        x = (images - self.shift) / self.scale
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i in self.taps:
                yield x


def _architecture(net: Net) -> nn.Sequential:
    """Return the layers up to the last one compared, without changing the global random state."""
    from torchvision import models  # late: slow to import

    build: dict[str, Callable[..., nn.Module]] = {"alex": models.alexnet, "squeeze": models.squeezenet1_1}
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        layers = build[net](weights=None).features
    assert isinstance(layers, nn.Sequential)
    for layer in layers:
        if isinstance(layer, nn.ReLU):
            layer.inplace = False  # in place, it would overwrite an output that may be compared
    return layers[: NETS[net].taps[-1] + 1]


def _features(net: Net, path: Path, sha256: str | None) -> dict[str, Tensor]:
    """Read the tensors of the convolutions from a file and check that they are the published ones."""
    if path.suffix == ".safetensors":
        state = _convolutions(read_tensors(path, sha256=sha256))
        if sha256 is None and not tensors_sha256(state).startswith(NETS[net].tensors):
            raise ValueError(
                f"weights must be the published tensors of {NETS[net].name}, got others in {path}: "
                "pass the file's own SHA-256 as sha256 if you trust it"
            )
        return state
    return _convolutions(read_weights(path, sha256=sha256 or published_hash(NETS[net].url)))


def _convolutions(state: dict[str, Tensor]) -> dict[str, Tensor]:
    part = "features."
    return {name.removeprefix(part): value for name, value in state.items() if name.startswith(part)}


def _heads(net: Net) -> list[Float[Tensor, "c 1 1"]]:
    """Return the linear heads of version 0.1: one weight per channel of every layer that is compared."""
    folder = resources.files("torchmetrics.functional.image") / "lpips_models"
    with (folder / f"{net}.pth").open("rb") as file:
        state = torch.load(file, map_location="cpu", weights_only=True)
    return [state[f"lin{i}.model.1.weight"][0] for i in range(len(NETS[net].taps))]


def _network_input(images: Image) -> Float[Tensor, "b 3 height width"]:
    """Return images as an ImageNet network expects them: in color, clipped, not too small."""
    if images.shape[1] not in (1, 3):
        raise ValueError(f"images must have 1 or 3 channels, got {images.shape[1]}: decode latents to pixels first")
    color = images.float().clamp(-1, 1).expand(-1, 3, -1, -1)
    factor = enlargement(images.shape[2], images.shape[3])
    return color if factor == 1 else F.interpolate(color, scale_factor=factor, mode="bilinear", align_corners=False)


def _unit(activations: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Normalize the channels at every position to unit length."""
    return activations / (activations.square().sum(1, keepdim=True) + 1e-8).sqrt()
