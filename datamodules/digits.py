"""scikit-learn's handwritten digits: real data of 8x8 pixels that needs no download."""

from collections.abc import Mapping

import torch
from torch import Tensor

from datamodules.base import ImageDataModule, ImageDataset, InMemoryImages, Split

SPLIT_SEED = 1797  # any constant would do: the split must not depend on the seed of a run
GREY_LEVELS = 16  # pixels are counts from 0 to 16


def held_out_mask(labels: Tensor, fraction: float) -> Tensor:
    """True (n,) for the held-out share of each class, rounded; the same for every run."""
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    mask = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero().squeeze(1)
        chosen = torch.randperm(len(members), generator=generator)[: round(fraction * len(members))]
        mask[members[chosen]] = True
    return mask


class Digits(ImageDataModule):
    """1797 grey images of 8x8 pixels with 17 levels, as float in [-1, 1]; ten classes.

    Args:
        batch_size: training images per step and process.
        eval_batch_size: images per evaluation batch and process; `batch_size` if None.
        workers: loader processes; the data lies in memory, 0 is fastest.
        seed: chooses the order of training and the keys, not the split.
        held_out: share of each class that is kept from training, in (0, 1); val and test are both this share.
    """

    channels = 1
    size = 8
    values = GREY_LEVELS + 1

    def __init__(
        self,
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        workers: int = 0,
        seed: int = 0,
        held_out: float = 0.2,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, workers=workers, seed=seed)
        if not 0 < held_out < 1:
            raise ValueError(f"held_out must lie in (0, 1), got {held_out}: 0.2 keeps a fifth of the digits")
        self.held_out = held_out

    def build(self) -> Mapping[Split, ImageDataset]:
        """The digits in memory; val and test are the same images."""
        from sklearn.datasets import load_digits  # late: slow to import, and no other data needs it

        digits = load_digits()
        images = torch.from_numpy(digits.images).float().unsqueeze(1) / (GREY_LEVELS / 2) - 1
        labels = torch.from_numpy(digits.target).long()
        held_out = held_out_mask(labels, self.held_out)
        train, kept = (InMemoryImages(images[m], labels[m], classes=10) for m in (~held_out, held_out))
        if not len(train) or not len(kept):
            raise ValueError(f"held_out leaves {len(train)} training and {len(kept)} held-out digits: use 0.2")
        return {"train": train, "val": kept, "test": kept}
