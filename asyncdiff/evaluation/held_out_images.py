"""Select images that are spread evenly over a split, and evaluate them in batches."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from asyncdiff.devices import HostCopy, to_device
from asyncdiff.precision import Precision, computing_in
from asyncdiff.shapes import Image, Labels

Rows = Float[Tensor, "b *numbers"]
Evaluate = Callable[[Image, Labels | None, list[int]], Rows]  # of images, their labels and their positions in the split


def evenly_spaced(total: int, count: int | None) -> list[int]:
    """Return the indices of `count` of `total` images, spread evenly; all indices if it is None or too large.

    Files are sorted by class, so the first ones would all belong to one class.
    """
    count = total if count is None else min(count, total)
    return [i * total // count for i in range(count)]


def evaluate_in_batches(
    images: Any,
    indices: Sequence[int],
    evaluate: Evaluate,
    *,
    batch_size: int,
    device: torch.device | str,
    labels: bool,
    precision: Precision = "float32",
) -> Iterator[Rows]:
    """Yield the rows of images of a data set, batch by batch, on the CPU.

    A GPU works on a batch while the next one is read.

    Args:
        images: data set without augmentation.
        indices: indices of the images to evaluate.
        evaluate: function that returns one row per image.
        batch_size: number of images per batch.
        device: device of the images.
        labels: whether `evaluate` gets labels.
        precision: precision to evaluate in; float32 is without TF32, whatever the settings.

    Yields:
        The rows of a batch; images whose files cannot be read have none.
    """
    last: HostCopy | None = None
    for first in range(0, len(indices), batch_size):
        batch = images.__getitems__(indices[first : first + batch_size])
        label = to_device(batch["label"], device) if labels else None
        with computing_in(precision, device):
            # Positions come from the batch, since unreadable files are missing in it.
            rows = HostCopy(evaluate(to_device(batch["image"], device), label, batch["index"].tolist()))
        if last is not None:
            yield last.read()
        last = rows
    if last is not None:
        yield last.read()
