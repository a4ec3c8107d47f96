"""One picture to draw: its seed, its label, and what is known of it."""

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
    """A picture that is wanted, all in pixels. A named tuple, which Lightning collates and moves between devices.

    Attributes:
        name: of its file, without the suffix.
        seed: what it depends on, beside the rest of this.
        label: its class, None to tell none.
        size: (height, width).
        image: what is known, (c, h, w) in [-1, 1], None if nothing is.
        known: True = known, (h, w).
        place: (row, column) of the image's upper left pixel, for images smaller than the picture.
        group: the photo it is made from; empty without.
        note: what was done to the photo.
        levels: that the pixels start from, (h, w) in [0, 1]: 0 = known .. 1 = drawn anew; None where `known` says all.
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

    def whole(self) -> tuple[Float[Tensor, "c H W"], Bool[Tensor, "H W"]]:
        """The image and its mask at the picture's size; zeros and False around the image."""
        assert self.image is not None, "a request without an image has no whole"
        assert self.known is not None, "image and known go together"
        image = self.image.new_zeros((len(self.image), *self.size))
        known = self.known.new_zeros(self.size)
        (top, left), (h, w) = self.place, self.known.shape
        image[:, top : top + h, left : left + w] = self.image
        known[top : top + h, left : left + w] = self.known
        return image, known


@dataclass(frozen=True)
class State:
    """How far a batch of pictures is.

    Attributes:
        show: makes the images.
        t: their level map, None on a canvas of windows.
        done: steps walked, or windows drawn.
        total: of these, None where the sampler cannot tell.
    """

    show: Callable[[], Image]
    t: LevelMap | None
    done: int
    total: int | None

    @cached_property
    def images(self) -> Image:
        """Pixels in about [-1, 1]; of the last state what is known is returned bit for bit.

        Made when they are asked for, since latents take long to decode: ask before the next state.
        """
        return self.show()


@runtime_checkable
class Model(Protocol):
    """What tasks use of a model, such as `asyncdiff.AsyncDiffusion`."""

    denoiser: Denoiser
    codec: Codec | None
    predict_batch_size: int

    @property
    def sampler(self) -> ImageSampler:
        """How it draws."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) that it was trained on: of images, or of latents if it has a codec."""

    @property
    def classes(self) -> int:
        """Number of labels, 0 without."""

    def encode(self, images: Image) -> Latents:
        """What it works on, of images."""

    def decode(self, x: Latents) -> Image:
        """Images of what it draws."""

    def sampling_context(self) -> AbstractContextManager[Any]:
        """The context that pictures are drawn in."""


def device_of(model: Model) -> torch.device:
    """Where its parameters are."""
    return next(model.denoiser.parameters()).device


def labels_in_turn(
    labels: Sequence[int] | None, count: int, model: Model, *, cycle: bool, per: str
) -> list[int | None]:
    """A label for each of `count` things.

    Args:
        labels: taken in turn; an empty list tells none, None tells none either, or all classes in turn with `cycle`.
        count: of the things.
        model: knows its classes.
        cycle: whether the classes are told in turn where nothing is said.
        per: what the things are, for refusals.
    """
    if labels is None:
        labels = range(model.classes) if cycle else ()
        return [labels[i % len(labels)] if labels else None for i in range(count)]
    if labels and not model.classes:
        raise ValueError("labels must be left out for a model trained without classes: it knows none")
    if wrong := [label for label in labels if not 0 <= label < model.classes]:
        raise ValueError(f"labels must lie in 0 .. {model.classes - 1}, got {wrong[0]}")
    if len(labels) > count:
        raise ValueError(f"labels must be at most one per {per}, got {len(labels)} for {count}: some would be unused")
    return [int(labels[i % len(labels)]) if labels else None for i in range(count)]


def named_for(stem: str, label: int | None) -> str:
    """A file's name with the class, where one is told."""
    return stem if label is None else f"{stem}_class{label}"
