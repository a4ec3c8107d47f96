"""scikit-learn's handwritten digits: real data of 8x8 pixels that needs no download."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from datamodules.base import ImageDataModule, ImageDataset, InMemoryImages, Split
from datamodules.hash_split import check_held_out

SPLIT_SEED = 1797  # an arbitrary constant: the split must not depend on the seed of a run
GRAY_LEVELS = 16  # pixels are counts from 0 to 16


def held_out_mask(labels: Tensor, fraction: float) -> Tensor:
    """Return True (n,) for the held-out fraction of each class, rounded; the same in every run."""
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    mask = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero().squeeze(1)
        selected = torch.randperm(len(members), generator=generator)[: round(fraction * len(members))]
        mask[members[selected]] = True
    return mask


class Digits(ImageDataModule):
    """1797 grayscale images of 8x8 pixels with 17 levels, as floats in [-1, 1]; ten classes.

    Args:
        held_out: fraction of each class held out, in (0, 1); it is both the val and the test split.
        **options: arguments of ImageDataModule.
    """

    channels = 1
    size = 8
    values = GRAY_LEVELS + 1

    def __init__(self, *, held_out: float = 0.2, **options: Any) -> None:
        super().__init__(**options)
        check_held_out(held_out, "0.2 holds out a fifth of the digits")
        self.held_out = held_out

    def build(self) -> Mapping[Split, ImageDataset]:
        """Load the digits into memory; val and test are the same images."""
        from sklearn.datasets import load_digits  # here: slow to import, and no other data needs it

        digits = load_digits()
        images = torch.from_numpy(digits.images).float().unsqueeze(1) / (GRAY_LEVELS / 2) - 1
        labels = torch.from_numpy(digits.target).long()
        held_out = held_out_mask(labels, self.held_out)
        train, val = (InMemoryImages(images[m], labels[m], classes=10) for m in (~held_out, held_out))
        if not len(train) or not len(val):
            raise ValueError(
                f"held_out must leave digits in both splits, got {self.held_out}, which leaves {len(train)} for "
                f"training and {len(val)} for validation: use 0.2"
            )
        train.label_names = val.label_names = [str(digit) for digit in range(10)]
        return {"train": train, "val": val, "test": val}
