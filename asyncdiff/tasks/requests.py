"""Requests for images, the photos that they start from, and states of their sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from asyncdiff.checks import check_labels

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from asyncdiff.shapes import Image, LevelMap


class Photo(NamedTuple):
    """Partly known image that a result starts from, in pixels.

    Attributes:
        name: name of the file without its suffix, with a number if another photo has the same.
        image: pixels (c, h, w) in [-1, 1]; unknown ones are never read.
        known: True where pixels are known, (h, w).
        levels: noise levels that pixels start from, (h, w) in [0, 1], 0 = known .. 1 = pure noise; None if pixels are
            either known or unknown, as given by `known`.
        place: (row, column) of the upper left pixel in the result, if the photo is smaller than the result.
        note: description of how the photo was resized and cropped.
    """

    name: str
    image: Tensor
    known: Tensor
    levels: Tensor | None = None
    place: tuple[int, int] = (0, 0)
    note: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the photo."""
        return self.known.shape[0], self.known.shape[1]

    def padded_to(self, size: tuple[int, int]) -> tuple[Float[Tensor, "c H W"], Bool[Tensor, "H W"]]:
        """Return the photo and its mask at the (height, width) of the result, padded with zeros and False."""
        image = self.image.new_zeros((len(self.image), *size))
        known = self.known.new_zeros(size)
        (top, left), (h, w) = self.place, self.size
        image[:, top : top + h, left : left + w] = self.image
        known[top : top + h, left : left + w] = self.known
        return image, known


class Canvas(NamedTuple):
    """What a task draws, before seeds and labels are assigned.

    Attributes:
        size: (height, width) of the result in pixels.
        photo: photo that the result starts from; None if there is none.
    """

    size: tuple[int, int]
    photo: Photo | None = None


class Request(NamedTuple):
    """Request for one image. A named tuple, because Lightning collates these and moves them to devices.

    Attributes:
        name: name of the image file, without the suffix.
        seed: seed of the random numbers.
        label: class label, or None for an unconditional image.
        size: (height, width) of the result in pixels.
        photo: photo that the result starts from; None if there is none.
    """

    name: str
    seed: int
    label: int | None
    size: tuple[int, int]
    photo: Photo | None = None


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


def assign_labels(labels: Sequence[int] | None, count: int, classes: int, *, cycle: bool, per: str) -> list[int | None]:
    """Assign a class label to each of `count` seeds or photos.

    Args:
        labels: labels to cycle through; an empty list means unconditional; None means all classes if `cycle` is true,
            otherwise unconditional.
        count: number of seeds or photos.
        classes: number of classes of the model, 0 if it is unconditional.
        cycle: cycle through all classes if `labels` is None.
        per: what labels are assigned to, "seed" or "photo", for error messages.

    Returns:
        One label per seed or photo; None for unconditional.

    Raises:
        ValueError: a label is not a class of the model, or there are more labels than seeds or photos.
    """
    if labels is None:
        labels = range(classes) if cycle else ()
        return [labels[i % len(labels)] if labels else None for i in range(count)]
    check_labels(labels or None, classes)
    if len(labels) > count:
        raise ValueError(
            f"there must be at most one label per {per}, got {len(labels)} labels for {count}: remove the others"
        )
    return [int(labels[i % len(labels)]) if labels else None for i in range(count)]
