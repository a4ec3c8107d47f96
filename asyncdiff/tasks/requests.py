"""Requests for single images, states of their sampling, and what tasks need of a model."""

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
    """Request for one image, in pixels. It is a named tuple because Lightning collates those and moves them to devices.

    Attributes:
        name: name of its file, without the suffix.
        seed: seed of its random numbers.
        label: class label, or None for an unconditional image.
        size: (height, width) of the result.
        image: photo, (c, h, w) in [-1, 1]; None without one.
        known: True where pixels of the photo are known, (h, w).
        place: (row, column) of the photo's upper left pixel in the result, for photos smaller than the result.
        group: name of the photo; empty without one.
        note: description of how the photo was resized and cropped.
        levels: noise levels that pixels start from, (h, w) in [0, 1], 0 = known .. 1 = pure noise; None if `known` says
            it all.
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
        t: their level map; None for images sampled in windows.
        done: number of finished sampling steps or windows.
        total: their final number; None if the sampler does not know it.
    """

    show: Callable[[], Image]
    t: LevelMap | None
    done: int
    total: int | None

    @cached_property
    def images(self) -> Image:
        """Images about in [-1, 1]; in the last state known pixels are those of the photo bit for bit.

        They are decoded on first access, as decoding latents is slow: access them before requesting the next state.
        """
        return self.show()


@runtime_checkable
class Model(Protocol):
    """Interface that tasks need of a model; `asyncdiff.AsyncDiffusion` has it."""

    denoiser: Denoiser
    codec: Codec | None
    predict_batch_size: int

    @property
    def sampler(self) -> ImageSampler:
        """Sampler of the model."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) that it was trained on, in pixels, or in latents if it has a codec."""

    @property
    def classes(self) -> int:
        """Number of class labels; 0 if it is unconditional."""

    def encode(self, images: Image) -> Latents:
        """Encode images into the model's space."""

    def decode(self, x: Latents) -> Image:
        """Decode results in the model's space into images."""

    def sampling_context(self) -> AbstractContextManager[Any]:
        """Return the context, such as autocast, that sampling runs in."""


def device_of(model: Model) -> torch.device:
    """Return the device of the model's parameters."""
    return next(model.denoiser.parameters()).device


def assign_labels(labels: Sequence[int] | None, count: int, model: Model, *, cycle: bool, per: str) -> list[int | None]:
    """Assign a class label to each of `count` seeds or photos.

    Args:
        labels: labels to cycle through; an empty list means unconditional; None means unconditional, or all classes in
            turn with `cycle`.
        count: number of seeds or photos.
        model: model whose classes are assigned.
        cycle: whether to cycle through all classes by default.
        per: what a label is assigned to, for error messages.

    Returns:
        One label each; None for unconditional.
    """
    if labels is None:
        labels = range(model.classes) if cycle else ()
        return [labels[i % len(labels)] if labels else None for i in range(count)]
    if labels and not model.classes:
        raise ValueError(f"labels must be left out for a model without classes, got {list(labels)}: remove them")
    if wrong := [label for label in labels if not 0 <= label < model.classes]:
        raise ValueError(f"labels must lie in 0 .. {model.classes - 1}, got {wrong[0]}")
    if len(labels) > count:
        raise ValueError(f"labels must be at most one per {per}, got {len(labels)} for {count}: some would be unused")
    return [int(labels[i % len(labels)]) if labels else None for i in range(count)]


def file_stem(stem: str, label: int | None) -> str:
    """Return the name of a file without suffix, with the class label if there is one."""
    return stem if label is None else f"{stem}_class{label}"
