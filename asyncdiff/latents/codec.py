"""What a codec is: pixels to the space that a model works in, and back."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from asyncdiff.checkpoints.object_config import class_path
from asyncdiff.checks import at_least
from asyncdiff.shapes import Image, Latents

COMPARED = ("weights", "channels", "scale", "shift")  # of two identities: what makes other latents


class Moments(NamedTuple):
    """Raw latents as the autoencoder gives them, before scale and shift.

    Attributes:
        mean: of the posterior.
        logvar: log-variance of the posterior in [-30, 20]; None where the encoder is deterministic.
    """

    mean: Latents
    logvar: Latents | None


class Codec(ABC):
    """Between pixels in [-1, 1] and model space, which is (raw latents - shift) * scale.

    A codec is no module: what it loads is in no state_dict, and neither copied nor pickled with it. The files are
    opened at first use, so that one can be built, and described in a checkpoint, where they are not.

    Attributes:
        scale: as given to the constructor: one number or one per channel; `normalisation` tells what is used.
        shift: subtracted from raw latents, one number or one per channel.
    """

    scale: float | Sequence[float] | None = 1.0
    shift: float | Sequence[float] | None = 0.0

    @property
    @abstractmethod
    def channels(self) -> int:
        """Channels of the latents."""

    @property
    @abstractmethod
    def pixel_channels(self) -> int:
        """Channels of the images."""

    @property
    @abstractmethod
    def factor(self) -> int:
        """Pixels per latent, each way."""

    @abstractmethod
    def moments(self, images: Image) -> Moments:
        """Raw latents of images (b, pixel_channels, h, w) in [-1, 1] whose sides are multiples of `factor`; float32."""

    @abstractmethod
    def decode(self, latents: Latents) -> Image:
        """Images of latents (b, channels, h, w) in model space: about in [-1, 1], `factor` times as large, float32."""

    @abstractmethod
    def weights(self) -> str | None:
        """SHA-256 over the weights in float32, hexadecimal; None without any."""

    def encode(self, images: Image) -> Latents:
        """Latents in model space, the posterior's mean, float32; `images` as `moments` takes them."""
        return self.scaled(self.moments(images).mean)

    def scaled(self, raw: Latents) -> Latents:
        """Raw latents in model space."""
        scale, shift = self._columns(raw)
        return (raw - shift) * scale

    def unscaled(self, latents: Latents) -> Latents:
        """Latents of model space, raw."""
        scale, shift = self._columns(latents)
        return latents / scale + shift

    def normalisation(self) -> tuple[list[float], list[float]]:
        """Scale and shift, one number per channel; ValueError if there are as many others."""
        return self._per_channel("scale", self.scale), self._per_channel("shift", self.shift)

    def identity(self) -> dict[str, Any]:
        """What makes latents comparable, in plain containers, wherever the files lie; see `check_same`.

        Keys: class (dotted path), weights (`weights()`), channels, factor, scale and shift (lists, one per channel).
        """
        scale, shift = self.normalisation()
        return {
            "class": class_path(type(self)),
            "weights": self.weights(),
            "channels": self.channels,
            "factor": self.factor,
            "scale": scale,
            "shift": shift,
        }

    def channels_at_hand(self) -> int | None:
        """`channels`, or None where the files that tell are not on this machine: nothing is fetched, nothing loaded."""
        try:
            return self.channels
        except FileNotFoundError:
            return None

    def to(self, device: torch.device | str) -> "Codec":
        """Itself, computing on the device from now on."""
        return self

    def check_images(self, images: Image) -> None:
        """Raise ValueError for images that cannot be encoded."""
        _, c, h, w = images.shape
        if c != self.pixel_channels or h % self.factor or w % self.factor or not h * w:
            raise ValueError(
                f"images must have {self.pixel_channels} channels and sides that are multiples of {self.factor}, "
                f"got {c}x{h}x{w}: resize or crop them"
            )

    def check_latents(self, latents: Latents) -> None:
        """Raise ValueError for latents of other channels."""
        if latents.shape[1] != self.channels:
            raise ValueError(
                f"latents must have the codec's {self.channels} channels, got {latents.shape[1]}: "
                "give the codec that they were encoded with"
            )

    def _columns(self, latents: Latents) -> tuple[Tensor, Tensor]:
        """Scale and shift, to broadcast against latents."""
        self.check_latents(latents)
        scale, shift = (latents.new_tensor(numbers)[:, None, None] for numbers in self.normalisation())
        return scale, shift

    def _per_channel(self, name: str, value: float | Sequence[float] | None) -> list[float]:
        assert value is not None, "a codec that takes None says what it means"
        numbers = [float(value)] * self.channels if isinstance(value, (int, float)) else [float(v) for v in value]
        if len(numbers) != self.channels:
            raise ValueError(
                f"{name} must be one number or one per channel, got {len(numbers)} for {self.channels} channels: "
                "leave the others out"
            )
        return numbers


class Identity(Codec):
    """Pixels as they are.

    Args:
        channels: of the images, 3 or 1.
    """

    def __init__(self, channels: int = 3):
        at_least("channels", channels, 1, "3 for colour")
        self._channels = channels

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return self._channels

    @property
    def pixel_channels(self) -> int:
        """The same."""
        return self._channels

    @property
    def factor(self) -> int:
        """1."""
        return 1

    def moments(self, images: Image) -> Moments:
        """The images."""
        self.check_images(images)
        return Moments(images, None)

    def encode(self, images: Image) -> Latents:
        """The images."""
        return self.moments(images).mean

    def decode(self, latents: Latents) -> Image:
        """The images."""
        self.check_latents(latents)
        return latents.float()

    def weights(self) -> None:
        """It has none."""
        return


def check_numbers(name: str, value: float | Sequence[float] | None) -> None:
    """Raise ValueError unless `value` is None or finite numbers, and for a scale none of them 0."""
    if value is None:
        return
    numbers = [value] if isinstance(value, (int, float)) else list(value)
    if not numbers or not all(math.isfinite(v) for v in numbers) or (name == "scale" and not all(numbers)):
        rule = "finite and not 0" if name == "scale" else "finite"
        raise ValueError(f"{name} must be {rule}, one number or one per channel, got {value}: leave it out for its own")


def check_same(codec: Codec, other: Mapping[str, Any]) -> None:
    """Raise ValueError unless latents of `codec` are those that `other` tells of, an `identity` of a codec.

    Args:
        codec: the model's.
        other: the data's; keys that it lacks are not compared.
    """
    own = codec.identity()
    for key in COMPARED:
        if key in other and own[key] != (list(other[key]) if isinstance(other[key], tuple) else other[key]):
            raise ValueError(
                f"model.codec must be the one that encoded the data, got another {key}: {_short(own[key])} for "
                f"{_short(other[key])}: give model.codec the files and numbers that the latents were made with, or "
                "encode the images again"
            )


def _short(value: Any) -> Any:
    """A value in few words: hashes by their beginning, equal numbers once."""
    if isinstance(value, str):
        return value[:12]
    if isinstance(value, (list, tuple)) and value and len(set(value)) == 1:
        return f"{value[0]:g}"
    return value
