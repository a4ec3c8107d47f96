"""Base classes of all data modules: three splits, batches as dicts, exact resume in the middle of an epoch."""

import inspect
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.argument_checks import MAX_SEED, MAX_WORKERS, at_least
from datamodules.order import ResumableLoader, ShuffledShard, StoppingLoader, sample_keys

Split = Literal["train", "val", "test"]
Item = tuple[int, int]  # index in the split and key of the sample


class Batch(TypedDict):
    """Batch of b labeled images; `index` is the position in the split, `key` seeds all random choices for it."""

    image: Tensor  # float32 (b, c, h, w) in [-1, 1]
    label: Tensor  # int64 (b,), 0 where there are no labels
    index: Tensor  # int64 (b,)
    key: Tensor  # int64 (b,) in [0, 2**63)


class ImageDataset(Dataset[Batch], ABC):
    """One split of a data set: square images of one size, read a batch at a time.

    Attributes:
        classes: number of classes, 0 without labels.
        label_names: names of the classes in the order of their labels; empty if the data does not name them.
    """

    classes: int
    label_names: Sequence[str] = ()

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @abstractmethod
    def read(self, items: Sequence[Item]) -> Any:
        """Read the images of the items, in their order, as a Batch or as input of `finish`."""

    def finish(self, batch: Any) -> Batch:
        """Return the result of `read` as a Batch, on the device of its tensors.

        Put here what is cheaper on the device than in a worker process. The result must depend on `batch` alone: the
        training split finishes the batches of all splits.
        """
        return batch

    def plain(self) -> "ImageDataset":
        """Return the same images without augmentation, each at most once."""
        return self

    def fingerprint(self) -> str:
        """Return a string that identifies the data, as far as possible without reading all of it."""
        return f"{len(self)} images of {self.classes} classes"

    def __getitems__(self, items: Sequence[Item | int]) -> Batch:
        """Return the batch of these (index, key) pairs; bare indices, as of other samplers, get a default key."""
        return self.finish(self.read(with_keys(items)))

    def __getitem__(self, item: Item | int) -> Batch:
        """Return a batch of one image."""
        return self.__getitems__([item])


class RawBatches(Dataset[Any]):
    """Dataset that DataLoaders read: batches before `finish`, which the data module calls on the device.

    Args:
        data: data set whose `read` is called.
    """

    def __init__(self, data: ImageDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitems__(self, items: Sequence[Item | int]) -> Any:
        return self.data.read(with_keys(items))


class InMemoryImages(ImageDataset):
    """Split whose images are held in memory.

    Args:
        images: float32 (n, c, h, w) in [-1, 1].
        labels: int64 (n,), from 0.
        classes: number of classes, 0 without labels.
    """

    def __init__(self, images: Tensor, labels: Tensor, *, classes: int) -> None:
        self.images, self.labels, self.classes = images, labels, classes

    def __len__(self) -> int:
        return len(self.images)

    def read(self, items: Sequence[Item]) -> Batch:
        index, key = index_and_key(items)
        return {"image": self.images[index], "label": self.labels[index], "index": index, "key": key}


def index_and_key(items: Sequence[Item]) -> tuple[Tensor, Tensor]:
    """Return the indices and the keys of the items as int64 tensors (b,)."""
    index, key = torch.tensor(items, dtype=torch.int64).reshape(-1, 2).unbind(1)
    return index, key


def mirror_odd(images: Tensor, key: Tensor) -> None:
    """Mirror the half of the images (b, c, h, w) whose key is odd, in place."""
    odd = (key % 2).nonzero().squeeze(1)
    images[odd] = images[odd].flip(-1)


def from_uint8(batch: Batch) -> Batch:
    """Convert the uint8 image of a batch to float32 in [-1, 1]; loaders that transfer bytes transfer a quarter."""
    return {**batch, "image": batch["image"].float().div_(127.5).sub_(1)}


def with_keys(items: Sequence[Item | int]) -> list[Item]:
    """Return (index, key) pairs unchanged; give bare indices a default key."""
    return [i if isinstance(i, tuple) else (i, int(sample_keys(0, 0, np.array([i]))[0])) for i in items]


def _no_collate(batch: Any) -> Any:
    """Return the batch unchanged, as collate_fn; a named function, because workers may have to pickle it."""
    return batch


def _ignore_signals(worker: int) -> None:
    """Ignore signals in workers: the training process handles them, and may finish its step first."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def constructor_signature(kind: type) -> inspect.Signature:
    """Return the signature of a class in which the arguments of its parents stand for `**options`.

    Arguments that the class fixes by an attribute of the same name, such as `channels = 3`, are left out.
    """
    listed: dict[str, inspect.Parameter] = {}
    fixed: set[str] = set()
    for base in kind.__mro__:
        if "__init__" in vars(base):
            parameters = list(inspect.signature(base.__init__).parameters.values())[1:]  # type: ignore[misc]
            named = [one for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
            added = {one.name: one for one in named if one.name not in listed and one.name not in fixed}
            keyword_only = {name: one.replace(kind=one.KEYWORD_ONLY) for name, one in added.items()}
            listed |= keyword_only if listed else added
            if len(named) == len(parameters):
                break
        fixed |= vars(base).keys()
    return inspect.Signature(list(listed.values()))


def accumulated_batches(trainer: Trainer) -> int:
    """Return how many batches are accumulated toward the next optimizer step; a checkpoint does not contain them."""
    loop: Any = trainer.fit_loop
    batches: int = loop.epoch_loop.batch_progress.current.processed
    return batches % trainer.accumulate_grad_batches if batches < loop.max_batches else 0


class ImageDataModule(LightningDataModule, ABC):
    """Base class of data modules: DataLoaders over three splits of images.

    Subclasses set `channels` and `size` (side length in pixels) and implement `build`; `values` is the number of
    equidistant values in [-1, 1] that a pixel can take. Their constructors may pass these arguments on as
    `**options: Any`: the command line lists them with those of the subclass.

    Args:
        batch_size: training images per step and process.
        eval_batch_size: evaluation images per batch and process; `batch_size` if None.
        workers: DataLoader worker processes per split; 0 reads in the training process, fast enough for data in memory
            or in memory maps.
        seed: seeds the training order and the sample keys, not the splits; from 0 to 2**32 - 1.
    """

    channels: int
    size: int
    values: int = 256
    __signature__: inspect.Signature

    def __init_subclass__(cls, **options: Any) -> None:
        """Complete the signature of the class, as `inspect` and `help` show it, by the options of its parents."""
        super().__init_subclass__(**options)
        cls.__signature__ = constructor_signature(cls)

    def __init__(
        self, *, batch_size: int = 128, eval_batch_size: int | None = None, workers: int = 0, seed: int = 0
    ) -> None:
        super().__init__()
        eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        at_least("batch_size", batch_size, 1, "set the number of images per step and process")
        at_least("eval_batch_size", eval_batch_size, 1, "omit it to use batch_size")
        at_least("workers", workers, 0, "use 2 to 16, or 0 to load in the training process", MAX_WORKERS)
        at_least("seed", seed, 0, "use 0, for example", MAX_SEED)
        self.batch_size, self.eval_batch_size, self.workers, self.seed = batch_size, eval_batch_size, workers, seed
        self._splits: Mapping[Split, ImageDataset] | None = None

    @abstractmethod
    def build(self) -> Mapping[Split, ImageDataset]:
        """Return the three splits; raise if the data is missing or unsuitable."""

    @property
    def classes(self) -> int:
        """Number of classes; 0 without labels."""
        return self.dataset("train").classes

    @property
    def label_names(self) -> Sequence[str]:
        """Names of the classes in the order of their labels; empty if the data does not name them."""
        return self.dataset("train").label_names

    def setup(self, stage: str | None = None) -> None:
        """Build the splits once; for "fit", also check that they have enough images."""
        splits = self._built()
        if stage == "fit":
            self._check_enough_images(ShuffledShard(splits["train"]))
            count, processes = len(splits["val"]), ShuffledShard(splits["val"]).rank_and_world[1]
            if count < processes:
                raise ValueError(
                    f"validation images must be at least as many as processes, got {count} for {processes}: "
                    "hold out more images or use fewer processes"
                )

    def teardown(self, stage: str) -> None:
        """Report unreadable images. Lightning calls this on all processes when a run ends."""
        from datamodules.unreadable import report_unreadable  # here, because it imports this module

        if self._splits is not None and self.trainer is not None:
            report_unreadable(self._splits, Path(self.trainer.default_root_dir))

    def dataset(self, split: Split) -> ImageDataset:
        """Return a split as training or evaluation reads it."""
        splits = self._built()
        if split not in splits:
            raise ValueError(f"split must be one of {', '.join(splits)}, got {split!r}: choose one of these")
        return splits[split]

    def images(self, split: Split, batch_size: int, *, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Iterate over a split in file order without augmentation: every `world`-th image, starting with `rank`."""
        at_least("batch_size", batch_size, 1, "set the number of images per batch")
        data = self.dataset(split).plain()
        shard = ShuffledShard(data, seed=self.seed, shuffle=False, drop_last=False, rank=rank, world=world)
        # Unreadable images are left out, so a batch may be empty.
        return (batch for batch in self._read(data, batch_size=batch_size, sampler=shard) if len(batch["index"]))

    def images_at(self, split: Split, batches: Sequence[list[int]]) -> Iterator[Batch]:
        """Iterate over the images at these indices without augmentation, one batch per list; skip unreadable ones."""
        return self._read(self.dataset(split).plain(), batch_sampler=batches)

    def _built(self) -> Mapping[Split, ImageDataset]:
        """Return the splits, built at the first call."""
        if self._splits is None:
            self._splits = self.build()
        return self._splits

    def _read(self, data: ImageDataset, **order: Any) -> Iterator[Batch]:
        """Iterate over finished batches in an order given by arguments of DataLoader."""
        return map(data.finish, DataLoader(RawBatches(data), **self._reading(), **order))

    def train_dataloader(self) -> ResumableLoader:
        """Return the loader of training batches of equal size, whose order a resumed run continues."""
        data = self.dataset("train")
        shard = ShuffledShard(data, seed=self.seed)
        self._check_enough_images(shard)
        options = self._options(shard, self.batch_size)
        return ResumableLoader(RawBatches(data), progress=self._epoch_progress, drop_last=True, **options)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of all validation images, in file order, with the same keys every time."""
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of all test images, in file order, with the same keys every time."""
        return self._eval_loader("test")

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch to the device, except index, key and seed: they are read on the CPU, without a device sync."""
        if not isinstance(batch, dict):
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        stay = {name: batch[name] for name in ("index", "key", "seed") if name in batch}
        rest = {name: value for name, value in batch.items() if name not in stay}
        return super().transfer_batch_to_device(rest, device, dataloader_idx) | stay

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Call the data set's `finish` on the device."""
        return self.dataset("train").finish(batch) if isinstance(batch, dict) and "index" in batch else batch

    def _eval_loader(self, split: Split) -> DataLoader[Batch]:
        data = self.dataset(split)
        shard = ShuffledShard(data, seed=self.seed, shuffle=False, drop_last=False)
        return StoppingLoader(RawBatches(data), **self._options(shard, self.eval_batch_size))

    def _options(self, shard: ShuffledShard, batch_size: int) -> dict[str, Any]:
        return {
            "batch_size": batch_size,
            "sampler": shard,
            "persistent_workers": self.workers > 0,
            "worker_init_fn": _ignore_signals,
            **self._reading(),
        }

    def _reading(self) -> dict[str, Any]:
        """Return the options of every DataLoader; batches for a GPU are pinned, so that copying them does not wait."""
        return {"num_workers": self.workers, "pin_memory": torch.cuda.is_available(), "collate_fn": _no_collate}

    def _check_enough_images(self, shard: ShuffledShard) -> None:
        """Raise ValueError if an epoch has no batch: Lightning would end the fit at once, silently."""
        needed = self.batch_size * shard.rank_and_world[1]
        if shard.size < needed:
            raise ValueError(
                f"batch_size must leave at least one batch per epoch, got {self.batch_size} x "
                f"{shard.rank_and_world[1]} process(es) = {needed} with {shard.size} training images: "
                "lower batch_size or add images"
            )

    def _epoch_progress(self) -> tuple[int, int] | None:
        """Return the trainer's count of batches processed in this epoch and of batches per epoch."""
        if self.trainer is None:
            return None
        loop: Any = self.trainer.fit_loop
        # `processed`, not `ready`: a batch that was only fetched when the run died must be yielded again.
        return loop.epoch_loop.batch_progress.current.processed - accumulated_batches(self.trainer), loop.max_batches
