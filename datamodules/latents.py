"""Latents cached by `python -m asyncdiff cache-latents`: memory-mapped, and sampled on the device."""

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from datamodules.argument_checks import MAX_SIDE, at_least
from datamodules.base import Batch, ImageDataModule, ImageDataset, Item, Split, index_and_key
from datamodules.counter_noise import counter_normal
from datamodules.storage.latent_shards import check_sha256, map_shard, open_shards, read_manifest


class CachedLatents(ImageDataset):
    """One split of a latent cache, read through memory maps whose pages all processes share.

    Args:
        root: folder of the cache.
        split: entry of the split in the manifest.
        codec: fingerprint of the codec; latents are (raw - shift) * scale with its shift and scale of every channel.
        sample: sample from the posterior with noise from the keys; otherwise use its mean.
        flip: use the mirrored view of the images whose key is odd.
        verify: compare all bytes with their SHA-256 now.
    """

    def __init__(
        self, root: Path, split: Mapping[str, Any], *, codec: Mapping[str, Any], sample: bool, flip: bool, verify: bool
    ) -> None:
        self.split, self.classes = split, int(split["classes"])
        self.scale, self.shift, self.sample, self.flip = codec["scale"], codec["shift"], sample, flip
        self.shards = open_shards(root, split)
        if verify:
            for header in self.shards:
                check_sha256(header)
        self.starts = np.cumsum([0, *(header.layout.count for header in self.shards)])
        self._maps: dict[int, tuple[npt.NDArray[Any], npt.NDArray[np.int64]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without the memory maps, for spawned workers."""
        return {**self.__dict__, "_maps": {}}

    def __len__(self) -> int:
        return int(self.split["count"])

    def plain(self) -> "CachedLatents":
        """Return the means of the same latents, not mirrored."""
        twin = copy.copy(self)
        twin.flip = twin.sample = False
        return twin

    def fingerprint(self) -> str:
        """Return a hash of the hashes of all shards."""
        return hashlib.sha256(json.dumps([shard["sha256"] for shard in self.split["shards"]]).encode()).hexdigest()

    def read(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """Read raw "moments" (b, k, c, h, w): the mean and, when sampling, the log-variance."""
        index, key = index_and_key(items)
        shard = np.searchsorted(self.starts, index.numpy(), side="right") - 1
        row = index.numpy() - self.starts[shard]
        view = key.numpy() % 2 if self.flip else np.zeros(len(row), np.int64)
        layout = self.shards[0].layout
        count = layout.moments if self.sample else 1
        moments = np.empty((len(row), count, *layout.shape), layout.dtype)
        label = np.empty(len(row), np.int64)
        # Copying row by row is as fast as one gather per shard, whatever the number of shards.
        for place, (s, r, v) in enumerate(zip(shard.tolist(), row.tolist(), view.tolist(), strict=True)):
            latents, labels = self._maps.get(s) or self._map(s)
            moments[place] = latents[:count, r, v]
            label[place] = labels[r]
        return {"moments": torch.from_numpy(moments), "label": torch.from_numpy(label), "index": index, "key": key}

    def finish(self, batch: Mapping[str, Tensor]) -> Batch:
        """Compute latents in model space, float32, sampled if there is a log-variance with noise from the keys."""
        moments = batch["moments"].float()
        std = moments[:, 1].div(2).exp_() if moments.shape[1] == 2 else None
        image = sampled(moments[:, 0], std, batch["key"], self.shift, self.scale)
        return {"image": image, "label": batch["label"], "index": batch["index"], "key": batch["key"]}

    def _map(self, number: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """Map latents and labels of a shard, once in each process."""
        return self._maps.setdefault(number, map_shard(self.shards[number]))


def sampled(mean: Tensor, std: Tensor | None, key: Tensor, shift: Sequence[float], scale: Sequence[float]) -> Tensor:
    """Return (mean + std * noise of the keys - shift) * scale, without noise if there is no standard deviation."""
    if std is not None:
        mean = torch.addcmul(mean, std, counter_normal(_on(mean.device, key), mean.shape[1:]))
    shifts, scales = (_per_channel(tuple(numbers), mean.dtype, mean.device) for numbers in (shift, scale))
    return (mean - shifts) * scales


def _on(device: torch.device, x: Tensor) -> Tensor:
    """Return `x` on a device, through pinned memory, so that the host does not wait for a GPU."""
    return (x.pin_memory() if device.type == "cuda" and x.device.type == "cpu" else x).to(device, non_blocking=True)


@lru_cache(maxsize=64)
def _per_channel(numbers: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return one number per channel, (c, 1, 1), copied to each device once."""
    with torch.inference_mode(False):  # validation may be first, and training could not use its inference tensors
        return _on(device, torch.tensor(numbers, dtype=dtype)[:, None, None])


class LatentCache(ImageDataModule):
    """Latents of an autoencoder, cached with `python -m asyncdiff cache-latents` (see docs/latents.md).

    Training and validation sample from the posterior N(mean, exp(logvar)) with noise that is a function of each
    sample's key: new noise in every training epoch, the same noise in every validation, so that validation losses are
    comparable with each other and with the training loss. `images` and `images_at`, which callbacks and commands use,
    return the means.

    Args:
        root: folder of the cache.
        size: rows and columns of a latent, as in the model.
        channels: channels of a latent.
        sample: sample from the posterior; otherwise use its mean. No difference for codecs without a variance.
        horizontal_flip: use the latent of the mirrored image for half of the training images.
        verify: compare every byte with its SHA-256 at the start, which reads all files; otherwise check only sizes and
            headers.
        **options: arguments of ImageDataModule.
    """

    def __init__(
        self,
        root: str,
        size: int,
        *,
        channels: int = 4,
        sample: bool = True,
        horizontal_flip: bool = True,
        verify: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        at_least("size", size, 1, "set the number of rows of a latent", MAX_SIDE)
        at_least("channels", channels, 1, "use 4, for example")
        self.root, self.size, self.channels = Path(root).expanduser(), size, channels
        self.sample, self.horizontal_flip, self.verify = sample, horizontal_flip, verify

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Manifest of the cache, read once."""
        return read_manifest(self.root)

    @property
    def codec(self) -> dict[str, Any]:
        """Fingerprint of the codec of the latents: class, weights (SHA-256), channels, factor, scale, shift."""
        return dict(self.manifest["codec"])

    @property
    def label_names(self) -> Sequence[str]:
        """Names of the classes, as the data that was encoded names them; empty in caches of earlier releases."""
        return list((self.manifest.get("data") or {}).get("label_names") or ())

    def build(self) -> Mapping[Split, ImageDataset]:
        """Open the cache; raise if it is incomplete, damaged or does not match the arguments of this module."""
        splits = self.manifest["splits"]
        if missing := [name for name in ("train", "val") if name not in splits]:
            raise ValueError(
                f"root must hold latents for training and validation, got {self.root} without {missing[0]}: run the "
                f"command again with --splits {missing[0]}"
            )
        data = {name: self._split(name, split) for name, split in splits.items()}
        return {"train": data["train"], "val": data["val"], "test": data.get("test", data["val"])}

    def _split(self, name: str, split: Mapping[str, Any]) -> CachedLatents:
        """Open a split; raise ValueError unless it has the model's shape and, if needed, mirrored views."""
        channels, height, width = split["shape"]
        if channels != self.channels:
            raise ValueError(
                f"channels must be {channels} as in the cache {self.root}, got {self.channels}: set channels: "
                f"{channels} here and in the network, or encode with another codec"
            )
        if (height, width) != (self.size, self.size):
            raise ValueError(
                f"size must match the {height}x{width} latents of the cache {self.root}, got {self.size}: set size and "
                f"image_size to {height}, or encode images of {self.size * self.codec['factor']} pixels"
            )
        if self.horizontal_flip and split["views"] < 2:
            raise ValueError(
                f"horizontal_flip must be false for a cache without mirrored views, got true for {self.root}: set it "
                "to false, or cache with --flip true"
            )
        flip = self.horizontal_flip and name == "train"
        return CachedLatents(self.root, split, codec=self.codec, sample=self.sample, flip=flip, verify=self.verify)
