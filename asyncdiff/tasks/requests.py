"""Requests for images, states of their sampling, and the interface of models that tasks use."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from asyncdiff.denoising.denoiser import Denoiser
from asyncdiff.latents import Codec
from asyncdiff.sampling.samplers import ImageSampler
from asyncdiff.shapes import Image, Latents, LevelMap


class Request(NamedTuple):
    """Request for one image, in pixels. A named tuple, because Lightning collates these and moves them to devices.

    Attributes:
        name: name of the image file, without the suffix.
        seed: seed of the random numbers.
        label: class label, or None for an unconditional image.
        size: (height, width) of the result.
        image: photo, (c, h, w) in [-1, 1]; None if there is none.
        known: True where pixels of the photo are known, (h, w).
        place: (row, column) of the photo's upper left pixel in the result, if the photo is smaller than the result.
        group: name of the photo; empty if there is none.
        note: description of how the photo was resized and cropped.
        levels: noise levels that pixels start from, (h, w) in [0, 1], 0 = known .. 1 = pure noise; None if pixels are
            either known or unknown, as given by `known`.
    """

    name: str
    seed: int
    label: int | None
    size: tuple[int, int]
    image: Tensor | None = None
    known: Tensor | None = None
    place: tuple[int, int] = (0, 0)
    group: str = ""
    note: str = ""
    levels: Tensor | None = None

    def at_full_size(self) -> tuple[Float[Tensor, "c H W"], Bool[Tensor, "H W"]]:
        """Return the photo and its mask at the size of the result, padded with zeros and False."""
        assert self.image is not None, "at_full_size needs an image"
        assert self.known is not None, "image and known go together"
        image = self.image.new_zeros((len(self.image), *self.size))
        known = self.known.new_zeros(self.size)
        (top, left), (h, w) = self.place, self.known.shape
        image[:, top : top + h, left : left + w] = self.image
        known[top : top + h, left : left + w] = self.known
        return image, known


@dataclass(frozen=True)
class State:
    """Progress of sampling a batch of images.

    Attributes:
        show: function that decodes the images.
        t: level map of the images; None for images sampled in windows.
        done: number of finished sampling steps or windows.
        total: total number of sampling steps or windows; None if the sampler does not know it.
    """

    show: Callable[[], Image]
    t: LevelMap | None
    done: int
    total: int | None

    @cached_property
    def images(self) -> Image:
        """Images approximately in [-1, 1]; in the last state, known pixels equal those of the photo bit for bit.

        They are decoded on first access, since decoding latents is slow; access them before requesting the next state.
        """
        return self.show()


@runtime_checkable
class Model(Protocol):
    """Interface of models that tasks use, implemented by `asyncdiff.AsyncDiffusion`."""

    denoiser: Denoiser
    codec: Codec | None

    @property
    def batch_size(self) -> int:
        """Number of images that are sampled together."""

    @property
    def sampler(self) -> ImageSampler:
        """Sampler of the model."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the training images, in pixels, or in latents if the model has a codec."""

    @property
    def classes(self) -> int:
        """Number of class labels; 0 if the model is unconditional."""

    def encode(self, images: Image) -> Latents:
        """Encode images into the model's space."""

    def decode(self, x: Latents) -> Image:
        """Decode results in the model's space into images."""

    def sampling_context(self) -> AbstractContextManager[Any]:
        """Return the context in which sampling runs, such as autocast."""


def device_of(model: Model) -> torch.device:
    """Return the device of the model's parameters."""
    return next(model.denoiser.parameters()).device


def assign_labels(labels: Sequence[int] | None, count: int, model: Model, *, cycle: bool, per: str) -> list[int | None]:
    """Assign a class label to each of `count` seeds or photos.

    Args:
        labels: labels to cycle through; an empty list means unconditional; None means all classes if `cycle` is true,
            otherwise unconditional.
        count: number of seeds or photos.
        model: model whose classes are assigned.
        cycle: cycle through all classes if `labels` is None.
        per: what labels are assigned to, "seed" or "photo", for error messages.

    Returns:
        One label per seed or photo; None for unconditional.
    """
    if labels is None:
        labels = range(model.classes) if cycle else ()
        return [labels[i % len(labels)] if labels else None for i in range(count)]
    if labels and not model.classes:
        raise ValueError(f"labels need a model with classes, got {list(labels)} for an unconditional one: omit labels")
    if invalid := [label for label in labels if not 0 <= label < model.classes]:
        raise ValueError(f"labels must lie in 0 .. {model.classes - 1}, got {invalid[0]}")
    if len(labels) > count:
        raise ValueError(
            f"there must be at most one label per {per}, got {len(labels)} labels for {count}: remove the others"
        )
    return [int(labels[i % len(labels)]) if labels else None for i in range(count)]


def file_stem(stem: str, label: int | None) -> str:
    """Return the stem of a file name with the class label appended, if there is one."""
    return stem if label is None else f"{stem}_class{label}"
