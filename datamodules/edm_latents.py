"""Latents of EDM2's `dataset_tool.py encode`: mean and standard deviation of Stable Diffusion's encoder."""

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from datamodules.argument_checks import MAX_SIDE, at_least, one_of
from datamodules.base import Batch, ImageDataModule, ImageDataset, Item, Split
from datamodules.edm_zips import MemberImages, load_npy
from datamodules.hash_split import check_held_out
from datamodules.images.encoded import ON_CORRUPT, Bytes
from datamodules.latents import sampled
from datamodules.storage.labeled_files import LabeledFiles, labeled_splits

# Mean and standard deviation of sd-vae-ft-mse's latents on ImageNet, from EDM2 (arXiv 2312.02696, its encoder).
SHIFT = (5.81, 3.25, 0.12, -2.15)
SCALE = (1 / 4.17, 1 / 4.62, 1 / 3.71, 1 / 3.28)
OPTIONS = ("size", "channels", "shift", "scale", "sample", "on_corrupt")  # arguments of both classes


class EdmMoments(MemberImages):
    """Files of a zip or folder that contain mean and standard deviation of a latent, floats (2c, h, w).

    Args:
        data: files and their labels.
        shift: shift of every channel.
        scale: scale of every channel; latents are (raw - shift) * scale.
        sample: sample the latents with noise from the keys; otherwise use the mean.
        **options: arguments of EncodedImages: size, channels (c), train and on_corrupt.
    """

    def __init__(
        self, data: LabeledFiles, *, shift: Sequence[float], scale: Sequence[float], sample: bool, **options: Any
    ) -> None:
        super().__init__(data, flip=False, **options)
        self.shift, self.scale, self.sample = shift, scale, sample

    def plain(self) -> "EdmMoments":
        """Return the means of the same latents."""
        twin = copy.copy(self)
        twin.train = twin.sample = False
        return twin

    def decode(self, data: Bytes) -> Tensor:
        """Load mean and standard deviation, float32 (2c, h, w); raise ValueError if the file contains anything else."""
        moments, expected = load_npy(data), (2 * self.channels, self.size, self.size)
        if moments.dtype.kind != "f" or moments.shape != expected:
            raise ValueError(f"its array must be floats {expected}, got {moments.dtype} of {moments.shape}")
        if not np.isfinite(moments).all() or moments[self.channels :].min() < 0:
            raise ValueError("its array must be finite, with non-negative standard deviations")
        return torch.from_numpy(moments.astype(np.float32))

    def read(self, items: Sequence[Item]) -> Batch:
        """Read raw moments, float32 (b, 2c, h, w), or means (b, c, h, w) if not `sample`."""
        batch = super().read(items)
        # The training split finishes the batches of all splits, so the batch itself must say whether to sample.
        return batch if self.sample else {**batch, "image": batch["image"][:, : self.channels]}

    def finish(self, batch: Batch) -> Batch:
        """Compute latents in model space, float32; the noise is a function of the key."""
        mean, std = batch["image"].float().tensor_split([self.channels], dim=1)
        return {**batch, "image": sampled(mean, std if std.shape[1] else None, batch["key"], self.shift, self.scale)}


class EdmLatents(ImageDataModule):
    """Latents from a zip or folder of EDM2's `dataset_tool.py encode`: img-mean-std-latents-*.npy and dataset.json.

    Training and validation sample from N(mean, std**2) with noise that is a function of each sample's key: new noise in
    every training epoch, the same noise in every validation. `images` and `images_at` return the means. Nothing is
    mirrored: EDM2's tool can store mirrored images as separate files.

    Args:
        root: the zip or folder.
        size: rows and columns of a latent.
        channels: channels of a latent; a file contains twice as many.
        shift: shift of every channel, in units of the stored values.
        scale: scale of every channel; the model sees (raw - shift) * scale. The default gives a standard deviation of
            1, EDM2 itself uses 0.5.
        sample: sample from the posterior; otherwise use its mean.
        val_root: another zip or folder for validation and testing; its classes must occur in training.
        held_out: fraction of the latents held out for validation, in (0, 1), if there is no `val_root`.
        on_corrupt: what to do with an unreadable file: "skip" warns once, and takes the next one in training, none in
            evaluation; "raise" stops.
        **options: arguments of ImageDataModule.
    """

    def __init__(
        self,
        root: str,
        size: int = 32,
        *,
        channels: int = 4,
        shift: Sequence[float] = SHIFT,
        scale: Sequence[float] = SCALE,
        sample: bool = True,
        val_root: str | None = None,
        held_out: float = 0.01,
        on_corrupt: Literal["skip", "raise"] = "skip",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        at_least("size", size, 1, "set the number of rows of a latent", MAX_SIDE)
        at_least("channels", channels, 1, "Stable Diffusion's latents have 4")
        one_of("on_corrupt", on_corrupt, ON_CORRUPT)
        check_held_out(held_out)
        for name, numbers in {"shift": shift, "scale": scale}.items():
            low = 0.0 if name == "scale" else -math.inf
            if len(numbers) != channels or not all(low < number < math.inf for number in numbers):
                raise ValueError(
                    f"{name} must be {channels} finite numbers{' above 0' * (name == 'scale')}, got {numbers}: one per "
                    "channel"
                )
        self.root, self.size, self.channels = Path(root).expanduser(), size, channels
        self.val_root = None if val_root is None else Path(val_root).expanduser()
        self.shift, self.scale, self.sample = tuple(shift), tuple(scale), sample
        self.held_out, self.on_corrupt = held_out, on_corrupt

    def build(self) -> Mapping[Split, ImageDataset]:
        """Find the files; raise FileNotFoundError or ValueError if there is nothing to train on."""
        splits = labeled_splits(self.root, self.val_root, self.held_out, {".npy"})
        options: dict[str, Any] = {name: getattr(self, name) for name in OPTIONS}
        train, val = (EdmMoments(splits[name], train=name == "train", **options) for name in ("train", "val"))
        first = train.fetch(0)
        try:
            train.decode(first)
        except ValueError as error:  # the others will be like it
            raise ValueError(
                f"{train.name(0)} is not a latent of EDM2: {error}; set size and channels, or use EdmZip"
            ) from error
        return {"train": train, "val": val, "test": val}
