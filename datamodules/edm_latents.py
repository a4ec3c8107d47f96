"""The latents of EDM2's `dataset_tool.py encode`: mean and deviation of Stable Diffusion's encoder for each image."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from datamodules.base import Batch, ImageDataModule, ImageDataset, Item, Split, at_least, index_and_key
from datamodules.counter_noise import counter_normal
from datamodules.edm_zips import MemberImages, load_npy
from datamodules.hash_split import check_held_out
from datamodules.images.encoded import Bytes, OnCorrupt, check_image_options
from datamodules.storage.labeled_files import LabeledFiles, labeled_splits

# Mean and deviation of sd-vae-ft-mse's latents on ImageNet, as EDM2 states them (arXiv 2312.02696, its encoder).
SHIFT = (5.81, 3.25, 0.12, -2.15)
SCALE = (1 / 4.17, 1 / 4.62, 1 / 3.71, 1 / 3.28)


class EdmMoments(MemberImages):
    """Files of a zip or folder that hold mean and deviation of a latent, floats (2c, h, w).

    Args:
        data: the files and their labels.
        size: rows and columns of a latent.
        channels: c.
        shift: of every channel.
        scale: of every channel; latents are (raw - shift) * scale.
        sample: draw around the mean, by the keys; otherwise take the mean.
        train: an unreadable file is replaced by the next readable one; otherwise it is left out.
        on_corrupt: "skip" warns once per file, "raise" stops.
    """

    def __init__(
        self,
        data: LabeledFiles,
        *,
        size: int,
        channels: int,
        shift: Sequence[float],
        scale: Sequence[float],
        sample: bool,
        train: bool,
        on_corrupt: OnCorrupt,
    ) -> None:
        super().__init__(data, size=size, channels=channels, train=train, flip=False, on_corrupt=on_corrupt)
        self.shift, self.scale, self.sample = shift, scale, sample

    def plain(self) -> "EdmMoments":
        """The means of the same latents."""
        twin = copy.copy(self)
        twin.train = twin.sample = False
        return twin

    def decode(self, data: Bytes) -> Tensor:
        """Mean and deviation, float32 (2c, h, w); raises ValueError where that is not what is stored."""
        moments, expected = load_npy(data), (2 * self.channels, self.size, self.size)
        if moments.dtype.kind != "f" or moments.shape != expected:
            raise ValueError(f"its array must be floats {expected}, got {moments.dtype} of {moments.shape}")
        if not np.isfinite(moments).all() or moments[self.channels :].min() < 0:
            raise ValueError("its array must be finite, and no deviation negative")
        return torch.from_numpy(moments.astype(np.float32))

    def read(self, items: Sequence[Item]) -> Any:
        """Moments as they are stored, "moments" float32 (b, 2c, h, w); in evaluation only those that can be read."""
        found = [(index, key, moments) for i, key in items for index, moments in self._readable(i)]
        index, key = index_and_key([(i, k) for i, k, _ in found])
        nothing = torch.empty(0, 2 * self.channels, self.size, self.size)
        moments = torch.stack([moments for _, _, moments in found]) if found else nothing
        label = torch.from_numpy(self.labels[index.numpy()].astype(np.int64))
        # A batch is finished by the data module, whoever has read it: it has to say itself whether it is drawn from.
        return {"moments": moments if self.sample else moments[:, : self.channels], "label": label} | {
            "index": index,
            "key": key,
        }

    def finish(self, batch: Any) -> Batch:
        """Latents in model space, float32; the noise they are drawn with is a function of the key."""
        mean, deviation = batch["moments"].tensor_split([self.channels], dim=1)
        if deviation.shape[1]:
            mean = torch.addcmul(mean, deviation, counter_normal(batch["key"].to(mean.device), mean.shape[1:]))
        shift, scale = (mean.new_tensor(numbers)[:, None, None] for numbers in (self.shift, self.scale))
        image = (mean - shift) * scale
        return {"image": image, "label": batch["label"], "index": batch["index"], "key": batch["key"]}


class EdmLatents(ImageDataModule):
    """Latents from a zip or folder of EDM2's `dataset_tool.py encode`: img-mean-std-latents-*.npy and dataset.json.

    Training and validation draw from N(mean, std**2), by noise that is a function of each sample's key: anew in every
    epoch of training, the same every time in validation. `images` and `listed` give the means. None is mirrored: EDM2's
    tool stores mirrored images as files of their own where they are wanted.

    Args:
        root: the zip or folder.
        size: rows and columns of a latent.
        channels: of a latent; a file holds twice as many.
        shift: of every channel, in units of the stored numbers.
        scale: of every channel; the model sees (raw - shift) * scale. EDM2's own deviation is half of the default's 1.
        sample: draw from the posterior; otherwise take its mean.
        val_root: another zip or folder to validate and test on; it must not hold other classes.
        held_out: share of the latents kept from training, in (0, 1), where there is no `val_root`.
        on_corrupt: what to do with an unreadable file: "skip" warns once, and takes the next one in training, none in
            evaluation; "raise" stops.
        batch_size: training images per step and process.
        eval_batch_size: images per evaluation batch and process; `batch_size` if None.
        workers: loader processes per split.
        seed: chooses the order of training and the keys, not the split.
    """

    def __init__(
        self,
        root: str,
        size: int = 32,
        channels: int = 4,
        shift: Sequence[float] = SHIFT,
        scale: Sequence[float] = SCALE,
        sample: bool = True,
        val_root: str | None = None,
        held_out: float = 0.01,
        on_corrupt: Literal["skip", "raise"] = "skip",
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, workers=workers, seed=seed)
        at_least("size", size, 1, "set the rows of a latent")
        at_least("channels", channels, 1, "4 is Stable Diffusion's")
        check_image_options(channels=3, on_corrupt=on_corrupt)
        check_held_out(held_out)
        for name, numbers in {"shift": shift, "scale": scale}.items():
            if len(numbers) != channels or (name == "scale" and min(numbers) <= 0):
                raise ValueError(
                    f"{name} must be {channels} numbers, for a scale above 0, got {numbers}: one a channel"
                )
        self.root, self.size, self.channels = Path(root).expanduser(), size, channels
        self.val_root = None if val_root is None else Path(val_root).expanduser()
        self.shift, self.scale, self.sample = tuple(shift), tuple(scale), sample
        self.held_out, self.on_corrupt = held_out, on_corrupt

    def build(self) -> Mapping[Split, ImageDataset]:
        """Find the files; raises FileNotFoundError or ValueError where there is nothing to train on."""
        splits = labeled_splits(self.root, self.val_root, self.held_out, {".npy"})
        train, val = self._moments(splits["train"], True), self._moments(splits["val"], False)
        first = train.fetch(0)
        try:
            train.decode(first)
        except ValueError as error:  # all of them will be like it
            raise ValueError(
                f"{train.name(0)} is no latent of EDM2: {error}; set size and channels, or use EdmZip"
            ) from error
        return {"train": train, "val": val, "test": val}

    def _moments(self, data: LabeledFiles, train: bool) -> EdmMoments:
        return EdmMoments(
            data,
            size=self.size,
            channels=self.channels,
            shift=self.shift,
            scale=self.scale,
            sample=self.sample,
            train=train,
            on_corrupt=self.on_corrupt,
        )
