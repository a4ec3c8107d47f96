"""Feature extractors for image metrics: the base class, a wrapper for any module, and a trained classifier."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from asyncdiff.checkpoints.object_config import class_path
from asyncdiff.checks import at_least, check_seeds
from asyncdiff.devices import HostCopy, to_device
from asyncdiff.evaluation.features.weights import tensors_sha256
from asyncdiff.precision import full_float32
from asyncdiff.shapes import Image, Labels, check_pixels

FeatureArray = Float[Tensor, "b d"]

BATCH_SIZE = 64
MAX_EPOCHS = 10_000
PEAK_LR = 3e-3


def to_uint8(images: Image) -> UInt8[Tensor, "b c h w"]:
    """Round images in [-1, 1] to the nearest of 256 levels per channel; clip values outside the range.

    Returns:
        8-bit images.

    Raises:
        ValueError: the images certainly have another range, see `check_range`.
    """
    check_range("images", images)
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def check_range(name: str, images: Image) -> None:
    """Raise ValueError if images certainly have another range than [-1, 1], see `check_pixels`.

    Of images on a GPU only the type is checked, because the host would wait for their values; see `LateRangeCheck`.
    """
    check_pixels(name, images[:0] if images.device.type == "cuda" else images)


class LateRangeCheck:
    """Check of the range of images batch by batch; on a GPU one batch late, when the values are at the host."""

    def __init__(self) -> None:
        self._last: tuple[str, Image, HostCopy] | None = None

    def __call__(self, name: str, images: Image) -> None:
        """Check images, or on a GPU those of the previous call; raise ValueError as `check_pixels` does."""
        self.finish()
        check_range(name, images)
        if images.device.type == "cuda" and images.numel():
            self._last = name, images, HostCopy(images.min())

    def finish(self) -> None:
        """Check the images of the last call; raise ValueError as `check_pixels` does."""
        last, self._last = self._last, None
        if last is not None and last[2].read() >= 0:  # most have negative values, and are done with
            check_pixels(last[0], last[1])


def as_rgb(images: Image) -> Float[Tensor, "b 3 h w"]:
    """Repeat gray images over three channels; raise ValueError unless there are 1 or 3 channels."""
    if images.shape[1] not in (1, 3):
        raise ValueError(f"images must have 1 or 3 channels, got {images.shape[1]}: decode latents to pixels first")
    return images.expand(-1, 3, -1, -1)


class Features(nn.Module, ABC):
    """Base class of feature extractors, which map each image in [-1, 1] to `dim` numbers.

    Attributes:
        name: suffix of metric tags for this feature space, as in `frechet/{name}`.
        dim: number of features per image.
    """

    name: str
    dim: int

    @abstractmethod
    def forward(self, images: Image) -> FeatureArray:
        """Return the features of each image, (b, dim)."""

    def prepare(self, train_batches: Iterable[Mapping[str, Any]]) -> None:
        """Fit to batches {"image", "label"} of the real training split; called once in each process."""
        del train_batches

    def preprocessing(self) -> dict[str, Any]:
        """Return the image preprocessing for `fingerprint`: rounding, resize, size and range."""
        return {}

    def fingerprint(self) -> dict[str, Any]:
        """Return a description of the feature space that identifies it, for JSON; call `prepare` first.

        Keys: class (dotted path), name, dim, weights (SHA-256 of all tensors, whatever the weight file), and input
        (`preprocessing()`).
        """
        return {
            "class": class_path(type(self)),
            "name": self.name,
            "dim": self.dim,
            "weights": tensors_sha256(self.fingerprint_tensors()),
            "input": self.preprocessing(),
        }

    def fingerprint_tensors(self) -> dict[str, Tensor]:
        """Return the tensors that `fingerprint` hashes: by default the state dict."""
        return self.state_dict()


class _Wrapped(Features):
    def __init__(self, module: nn.Module, name: str, dim: int | None) -> None:
        super().__init__()
        self.module, self.name = module, name
        if dim is not None:
            self.dim = dim

    def forward(self, images: Image) -> FeatureArray:
        return self.module(images)

    def preprocessing(self) -> dict[str, Any]:
        return {"module": class_path(type(self.module))}

    @torch.no_grad()
    def prepare(self, train_batches: Iterable[Mapping[str, Any]]) -> None:
        """Infer `dim` from one image unless it is known."""
        if not hasattr(self, "dim"):
            self.eval()
            with isolated_rng(0):  # starting a DataLoader draws from the global random state
                image = next(iter(train_batches))["image"][:1]
            self.dim = self.module(image.to(_device(self))).shape[1]


def as_features(module: nn.Module, *, name: str | None = None, dim: int | None = None) -> Features:
    """Return a module as a `Features`, or a `Features` unchanged.

    Args:
        module: module that maps images (b, c, h, w) in [-1, 1] to features (b, dim).
        name: name of the feature space (default: the module's class name in lower case).
        dim: number of features (default: the module's own `dim`, or inferred by `prepare` from a training image).

    Raises:
        ValueError: `name` or `dim` is given for a `Features`, which has its own.
    """
    if isinstance(module, Features):
        if name is not None or dim is not None:
            raise ValueError(
                f"{type(module).__name__} has its own name and dim, got name {name!r} and dim {dim!r}: omit both"
            )
        return module
    return _Wrapped(module, name or type(module).__name__.lower(), dim or getattr(module, "dim", None))


class TrainedClassifier(Features):
    """Last hidden layer of a small classifier that is trained on the real training split once per run.

    Useful for images on which Inception is not informative, such as 8x8 digits. The same seed, batches and machine give
    the same features; all processes use the weights from rank 0. `prepare` keeps the entire split in memory and trains
    on the module's device: move it to a GPU first if there are many images.

    The features are the activations after the last nonlinearity (SiLU, which has no dead units, unlike ReLU). On the
    digits their covariance is six times better conditioned than that of the linear outputs before it.

    Args:
        channels: number of image channels; images must have at least 5x5 pixels.
        classes: number of classes; labels range from 0 to `classes - 1`.
        name: name of the feature space in tags, cards and tables.
        width: number of channels after the first convolution, doubled whenever the resolution is halved.
        dim: number of features.
        epochs: number of passes over the split.
        seed: random seed of the initial weights and the order of the images.
    """

    prepared: Tensor

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        name: str = "classifier",
        width: int = 32,
        dim: int = 64,
        epochs: int = 8,
        seed: int = 0,
    ) -> None:
        super().__init__()
        sizes = {"channels": (channels, 1024), "classes": (classes, 2**17), "width": (width, 1024), "dim": (dim, 2**14)}
        for argument, (value, most) in sizes.items():
            at_least(argument, value, 1, "use 1 channel for gray images and 2 classes, for example", most)
        at_least("epochs", epochs, 0, "use 8, for example", MAX_EPOCHS)
        check_seeds("seed", [seed])
        self.name, self.dim, self.epochs, self.seed = name, dim, epochs, seed
        with isolated_rng(seed):
            self.trunk = nn.Sequential(
                _conv_block(channels, width, stride=1),
                _conv_block(width, 2 * width, stride=2),
                _conv_block(2 * width, 4 * width, stride=2),
            )
            self.embedding = nn.Linear(4 * 4 * width, dim)
            self.head = nn.Linear(dim, classes)
        self.requires_grad_(False).eval()
        self.register_buffer("prepared", torch.tensor(False))

    def forward(self, images: Image) -> FeatureArray:
        if not self.prepared:
            raise RuntimeError(f"features {self.name!r} must be trained before use: call prepare(train_batches) first")
        return self._embed(images)

    def logits(self, images: Image) -> Float[Tensor, "b k"]:
        """Return unnormalized log-probabilities of the classes for each image."""
        return self.logits_of(self(images))

    def logits_of(self, features: FeatureArray) -> Float[Tensor, "b k"]:
        """Return what `logits` returns, given the features of the images."""
        return self.head(features)

    def preprocessing(self) -> dict[str, Any]:
        return {"rounding": None, "resize": None, "range": "[-1, 1]"}

    def accuracy(self, images: Image, labels: Labels) -> float:
        """Return the classification accuracy, in [0, 1]."""
        return (self.logits(images).argmax(1) == labels).float().mean().item()

    def prepare(self, train_batches: Iterable[Mapping[str, Any]]) -> None:
        """Train on all images and labels in `train_batches`; the global random state is not changed."""
        with isolated_rng(self.seed), torch.inference_mode(False), torch.enable_grad():
            batches = [(batch["image"], batch["label"]) for batch in train_batches]
            if not batches:
                raise ValueError("train_batches is empty: pass batches of the real training split")
            images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
            if min(images.shape[2:]) < 5:
                raise ValueError(f"images must be at least 5x5 pixels, got {tuple(images.shape[2:])}: use as_features")
            self.requires_grad_(True)
            with full_float32(_device(self)), _deterministic_convolutions():
                self._train(images.float(), labels)
            self.requires_grad_(False)
        self.prepared.fill_(True)
        _broadcast_from_rank_0(self)

    def _train(self, images: Tensor, labels: Tensor) -> None:
        device = _device(self)
        size = min(BATCH_SIZE, len(images))
        orders = [torch.randperm(len(images)) for _ in range(self.epochs)]
        orders = [to_device(order, device) for order in orders]
        steps = [indices for order in orders for indices in order.split(size) if len(indices) == size]
        images, labels = to_device(images, device), to_device(labels, device)
        optimizer = torch.optim.AdamW(self.parameters(), lr=PEAK_LR)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, total_steps=len(steps))
        for indices in steps:
            loss = F.cross_entropy(self.head(self._embed(images[indices])), labels[indices])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()

    def _embed(self, images: Tensor) -> Tensor:
        return F.silu(self.embedding(_quadrant_means(self.trunk(images))))


def _conv_block(channels: int, width: int, *, stride: int) -> nn.Sequential:
    # Unlike batch normalization, group normalization is the same in training and evaluation.
    norm = nn.GroupNorm(math.gcd(8, width), width)
    return nn.Sequential(nn.Conv2d(channels, width, 3, stride, padding=1), norm, nn.SiLU())


def _quadrant_means(maps: Tensor) -> Tensor:
    """Return the mean of each quadrant, (b, 4 c); adaptive pooling has no deterministic gradient on a GPU."""
    parts = [part for half in maps.tensor_split(2, dim=2) for part in half.tensor_split(2, dim=3)]
    return torch.cat([part.mean((2, 3)) for part in parts], dim=1)


@contextmanager
def _deterministic_convolutions() -> Iterator[None]:
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before


def _device(module: nn.Module) -> torch.device:
    return next(iter(module.parameters()), torch.empty(0)).device


@contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """Seed the CPU's random state inside the context and restore it afterwards."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs too
        yield


def _broadcast_from_rank_0(module: nn.Module) -> None:
    """Load the weights from rank 0 in every process, so that all use the same feature space."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    states = [{name: value.cpu() for name, value in module.state_dict().items()}]
    dist.broadcast_object_list(states)  # works for tensors on the CPU under every backend
    module.load_state_dict(states[0])
