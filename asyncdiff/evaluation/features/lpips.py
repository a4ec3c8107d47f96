"""LPIPS distance, and features for Fréchet distances, from small ImageNet networks."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics.functional.image.lpips import _NoTrainLpips

from asyncdiff.evaluation.features.base import Features, as_rgb, check_range, isolated_rng, to_uint8
from asyncdiff.evaluation.features.weights import published_hash, read_tensors, tensors_sha256, weight_file
from asyncdiff.precision import full_float32
from asyncdiff.shapes import Image

Distances = Float[Tensor, " b"]

MIN_SIDE = 64  # shorter side of an image in pixels: LPIPS was fitted to human judgments of 64x64 patches

Net = Literal["alex", "squeeze"]


class _PublishedNet(NamedTuple):
    """Published backbone of LPIPS."""

    name: str  # in torchvision
    url: str  # of torchvision's weight file
    tensors: str  # first digits of `tensors_sha256` of the convolutions, to recognize copies in other file formats
    dim: int  # number of channels of the last convolution


NETS: dict[str, _PublishedNet] = {
    "alex": _PublishedNet(
        "alexnet", "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth", "8f089f8cba589c7c", 256
    ),
    "squeeze": _PublishedNet(
        "squeezenet", "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth", "463048c0c63f2e52", 512
    ),
}


class LPIPS(nn.Module):
    """Learned perceptual distance between pairs of images, 0 for equal ones (Zhang et al., arXiv:1801.03924).

    This is torchmetrics' network of version 0.1 with its linear heads. Values outside [-1, 1] are clipped, gray images
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
        self.net, self.weights, self.sha256 = net, weights, sha256
        self.distance = _load_network(net, weights, sha256)

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
        check_range("images", images)
        check_range("others", others)
        with full_float32(images.device):
            return self.distance(_network_input(images), _network_input(others)).flatten()


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
        self.net, self.weights, self.sha256 = net, weights, sha256
        self.lpips = _load_network(net, weights, sha256)
        self.name, self.dim = NETS[net].name, NETS[net].dim

    def forward(self, images: Image) -> Float[Tensor, "b d"]:
        x = self.lpips.scaling_layer(_network_input(to_uint8(images) / 127.5 - 1))
        return self.lpips.net(x)[-1].mean((2, 3))

    def preprocessing(self) -> dict[str, Any]:
        resize = f"bilinear, by a whole factor, to {MIN_SIDE} pixels and more"
        return {"rounding": "8 bits", "resize": resize, "range": "ImageNet's mean and spread"}

    def fingerprint_tensors(self) -> dict[str, Tensor]:
        """Return the tensors under their names in release 0.1.0, so that reference statistics stay valid."""
        state = self.lpips.net.state_dict()
        scaling = {name: getattr(self.lpips.scaling_layer, name)[0] for name in ("shift", "scale")}
        layers = {f"layers.{_torchvision_name(name)}": value for name, value in state.items()}
        return {f"backbone.{name}": value for name, value in (scaling | layers).items()}


def upsampling_factor(height: int, width: int) -> int:
    """Return the integer factor by which images of this size are upsampled for the network."""
    return -(-MIN_SIDE // min(height, width))


def _load_network(net: Net, weights: str | None, sha256: str | None) -> _NoTrainLpips:
    """Return torchmetrics' network with a backbone from a file, which torchmetrics itself would unpickle unchecked."""
    if net not in NETS:
        raise ValueError(f"net must be alex or squeeze, got {net!r}: choose one of them")
    state = _read_convolutions(net, weight_file(weights, url=NETS[net].url), sha256)
    with isolated_rng(0):  # the layers draw initial weights before they are loaded
        network = _NoTrainLpips(net=net, pnet_rand=True)
    names = {_torchvision_name(name): name for name in network.net.state_dict()}
    try:
        network.net.load_state_dict({names.get(name, name): value for name, value in state.items()})
    except RuntimeError as error:
        raise ValueError(
            f"weights do not fit torchvision's {NETS[net].name}: pass those of this network, or change net"
        ) from error
    return network


def _torchvision_name(name: str) -> str:
    """Return torchvision's name of a tensor: 3.squeeze.bias for slices.1.3.squeeze.bias, 0.bias for slice1.0.bias."""
    return name.split(".", 2 if name.startswith("slices.") else 1)[-1]


def _read_convolutions(net: Net, path: Path, sha256: str | None) -> dict[str, Tensor]:
    """Read the weights of the convolutions, and raise ValueError unless they are published or match `sha256`."""
    converted = path.suffix == ".safetensors"
    expected = published_hash(NETS[net].url) if sha256 is None and not converted else sha256
    part = "features."
    tensors = read_tensors(path, sha256=expected)
    state = {name.removeprefix(part): value for name, value in tensors.items() if name.startswith(part)}
    if sha256 is None and converted and not tensors_sha256(state).startswith(NETS[net].tensors):
        raise ValueError(
            f"{path} does not contain the published weights of {NETS[net].name}: "
            "pass the file's own SHA-256 as sha256 if you trust it"
        )
    return state


def _network_input(images: Image) -> Float[Tensor, "b 3 height width"]:
    """Convert images to those that an ImageNet network expects: in color, clipped, not too small."""
    color = as_rgb(images).float().clamp(-1, 1)
    factor = upsampling_factor(images.shape[2], images.shape[3])
    return color if factor == 1 else F.interpolate(color, scale_factor=factor, mode="bilinear", align_corners=False)
