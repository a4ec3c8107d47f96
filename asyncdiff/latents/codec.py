"""Base class of codecs, which map pixels to the space that a model works in and back."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from asyncdiff.checkpoints.object_config import class_path
from asyncdiff.checks import at_least
from asyncdiff.devices import constant
from asyncdiff.shapes import Image, Latents, check_pixels

COMPARED = ("weights", "channels", "scale", "shift")  # keys of fingerprints that must agree for latents to be equal


class Moments(NamedTuple):
    """Raw latents as the autoencoder returns them, before scale and shift.

    Attributes:
        mean: mean of the posterior.
        logvar: log-variance of the posterior in [-30, 20]; None if the encoder is deterministic.
    """

    mean: Latents
    logvar: Latents | None


class Codec(ABC):
    """Conversion between pixels in [-1, 1] and model space, which is (raw latents - shift) * scale.

    A codec is not an nn.Module: the networks that it loads appear in no state_dict and are neither copied nor pickled
    with it. Files are opened at first use, so that a codec can be built, and described in a checkpoint, on machines
    without them.

    Attributes:
        scale: factor applied to the shifted latents, as passed to the constructor: one number or one per channel, or
            None for the default; `normalization` returns the numbers in use.
        shift: number subtracted from raw latents, or one per channel, or None, as passed to the constructor.
    """

    scale: float | Sequence[float] | None = 1.0
    shift: float | Sequence[float] | None = 0.0

    @property
    @abstractmethod
    def channels(self) -> int:
        """Number of channels of the latents."""

    @property
    @abstractmethod
    def pixel_channels(self) -> int:
        """Number of channels of the images."""

    @property
    @abstractmethod
    def factor(self) -> int:
        """Number of pixels per latent along each side."""

    @abstractmethod
    def moments(self, images: Image) -> Moments:
        """Return raw latents of images in [-1, 1] whose sides are multiples of `factor`, float32."""

    @abstractmethod
    def decode(self, latents: Latents) -> Image:
        """Return the images of latents in model space, approximately in [-1, 1], float32."""

    @abstractmethod
    def weights_sha256(self) -> str | None:
        """Return the hexadecimal SHA-256 of the float32 weights, or None for a codec without weights."""

    def encode(self, images: Image) -> Latents:
        """Encode images into model space: the mean of the posterior, float32; see `moments` for the images."""
        return self.scaled(self.moments(images).mean)

    def scaled(self, raw: Latents) -> Latents:
        """Convert raw latents to model space."""
        scale, shift = self._broadcast_normalization(raw)
        return (raw - shift) * scale

    def unscaled(self, latents: Latents) -> Latents:
        """Convert latents from model space to raw latents."""
        scale, shift = self._broadcast_normalization(latents)
        return latents / scale + shift

    def normalization(self) -> tuple[list[float], list[float]]:
        """Return scale and shift with one number per channel; raise ValueError if their number does not fit."""
        scale, shift = self.default_normalization()
        return (
            self._per_channel("scale", scale if self.scale is None else self.scale),
            self._per_channel("shift", shift if self.shift is None else self.shift),
        )

    def default_normalization(self) -> tuple[float | Sequence[float], float | Sequence[float]]:
        """Return scale and shift for arguments that are None: one number or one per channel, by default 1 and 0."""
        return 1.0, 0.0

    def fingerprint(self) -> dict[str, Any]:
        """Return a dict that identifies this codec's latents, wherever its files are; see `check_same_codec`.

        Keys: class (dotted path), weights (`weights_sha256()`), channels, factor, and lists scale and shift.
        """
        scale, shift = self.normalization()
        return {
            "class": class_path(type(self)),
            "weights": self.weights_sha256(),
            "channels": self.channels,
            "factor": self.factor,
            "scale": scale,
            "shift": shift,
        }

    def channels_if_available(self) -> int | None:
        """Return `channels`, or None if the files that define it are not on this machine; never download anything."""
        try:
            return self.channels
        except FileNotFoundError:
            return None

    def to(self, device: torch.device | str) -> "Codec":
        """Move the computation to `device`, and return this codec."""
        return self

    def check_images(self, images: Image) -> None:
        """Raise ValueError unless the images can be encoded: their shape fits, and they may be pixels in [-1, 1]."""
        _, c, h, w = images.shape
        if c != self.pixel_channels or h % self.factor or w % self.factor or not h * w:
            raise ValueError(
                f"images must have {self.pixel_channels} channels and sides that are multiples of {self.factor}, "
                f"got {c}x{h}x{w}: resize or crop them"
            )
        check_pixels("images", images)

    def check_latents(self, latents: Latents) -> None:
        """Raise ValueError unless the latents have the codec's number of channels."""
        if latents.shape[1] != self.channels:
            raise ValueError(
                f"latents must have the codec's {self.channels} channels, got {latents.shape[1]}: "
                "use the codec that encoded them"
            )

    def _broadcast_normalization(self, latents: Latents) -> tuple[Tensor, Tensor]:
        """Return scale and shift in shapes that broadcast against latents."""
        self.check_latents(latents)
        scale, shift = (_per_channel(tuple(n), latents.dtype, latents.device) for n in self.normalization())
        return scale, shift

    def _per_channel(self, name: str, value: float | Sequence[float]) -> list[float]:
        numbers = [float(value)] * self.channels if isinstance(value, (int, float)) else [float(v) for v in value]
        if len(numbers) != self.channels:
            raise ValueError(
                f"{name} must be one number or one per channel, got {len(numbers)} for {self.channels} channels: "
                f"use 1 or {self.channels} numbers"
            )
        return numbers


class Identity(Codec):
    """Codec whose latents are the pixels themselves.

    Args:
        channels: number of channels of the images, such as 3 or 1.
    """

    def __init__(self, channels: int = 3):
        at_least("channels", channels, 1, "use 3 for color images")
        self._channels = channels

    @property
    def channels(self) -> int:
        return self._channels

    @property
    def pixel_channels(self) -> int:
        return self._channels

    @property
    def factor(self) -> int:
        return 1

    def moments(self, images: Image) -> Moments:
        self.check_images(images)
        return Moments(images, None)

    def encode(self, images: Image) -> Latents:
        return self.moments(images).mean  # bit for bit, without scale and shift

    def decode(self, latents: Latents) -> Image:
        self.check_latents(latents)
        return latents.float()

    def weights_sha256(self) -> None:
        return


@constant
def _per_channel(numbers: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=dtype, device=device)[:, None, None]


def check_numbers(name: str, value: float | Sequence[float] | None) -> None:
    """Raise ValueError unless `value` is None or consists of finite numbers, all nonzero if `name` is "scale"."""
    if value is None:
        return
    numbers = [value] if isinstance(value, (int, float)) else list(value)
    if not numbers or not all(math.isfinite(v) for v in numbers) or (name == "scale" and not all(numbers)):
        rule = "finite and not 0" if name == "scale" else "finite"
        raise ValueError(
            f"{name} must be {rule}, one number or one per channel, got {value}: omit it to use the codec's default"
        )


def check_same_codec(codec: Codec, other: Mapping[str, Any]) -> None:
    """Raise ValueError unless `codec` makes the latents that a fingerprint describes, as far as it has their keys."""
    own = codec.fingerprint()
    for key in COMPARED:
        if key in other and own[key] != (list(other[key]) if isinstance(other[key], tuple) else other[key]):
            raise ValueError(
                f"model.codec must be the one that encoded the data, got {key} {_abbreviate(own[key])} instead of "
                f"{_abbreviate(other[key])}: set model.codec to the files and numbers that the latents were encoded "
                "with, or encode the images again"
            )


def _abbreviate(value: Any) -> Any:
    """Abbreviate a value for a message: the first digits of a hash, or one number for a list of equal numbers."""
    if isinstance(value, str):
        return value[:12]
    if isinstance(value, (list, tuple)) and value and len(set(value)) == 1:
        return f"{value[0]:g}"
    return value
