"""What every data module shares: three splits, batches as dicts, exact continuation."""

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

from datamodules.order import ResumableLoader, ShuffledShard, sample_keys

Split = Literal["train", "val", "test"]
Item = tuple[int, int]  # index in the split, key of the sample


class Batch(TypedDict):
    """b images with their labels; `index` is the place in the split, `key` seeds whatever is drawn for the sample."""

    image: Tensor  # float32 (b, c, h, w) in [-1, 1]
    label: Tensor  # int64 (b,), 0 where there are no labels
    index: Tensor  # int64 (b,)
    key: Tensor  # int64 (b,) in [0, 2**63)


class ImageDataset(Dataset[Batch], ABC):
    """A split: square images of one size, read a batch at a time.

    Attributes:
        classes: number of classes, 0 without labels.
    """

    classes: int

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def read(self, items: Sequence[Item]) -> Any:
        """The images of the items, in their order: a Batch, or whatever `finish` makes one of."""

    def finish(self, batch: Any) -> Batch:
        """The batch of what `read` returned, computed where its tensors are.

        What is cheaper on the device than in a loader's process belongs here. It must be a function of the batch alone.
        """
        return batch

    def plain(self) -> "ImageDataset":
        """The same images without augmentation, each at most once."""
        return self

    def fingerprint(self) -> str:
        """A text that differs for other data, as far as can be told without reading all of it."""
        return f"{len(self)} images of {self.classes} classes"

    def __getitems__(self, items: Sequence[Item | int]) -> Batch:
        """The batch of (index, key) pairs; a bare index, as other samplers give it, gets a key of its own."""
        return self.finish(self.read(with_keys(items)))

    def __getitem__(self, item: Item | int) -> Batch:
        """A batch of one."""
        return self.__getitems__([item])


class RawBatches(Dataset[Any]):
    """What loaders read: the batches before `finish`, which the data module calls on the device.

    Args:
        data: the images.
    """

    def __init__(self, data: ImageDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        """Number of images."""
        return len(self.data)

    def __getitems__(self, items: Sequence[Item | int]) -> Any:
        """What the images' `read` returns."""
        return self.data.read(with_keys(items))

    def __getitem__(self, item: Item | int) -> Any:
        """The same of a single one."""
        return self.__getitems__([item])


class InMemoryImages(ImageDataset):
    """Images held in memory: `images` float32 (n, c, h, w) in [-1, 1], `labels` int64 (n,).

    Args:
        images: of the split.
        labels: of these, from 0.
        classes: number of classes.
    """

    def __init__(self, images: Tensor, labels: Tensor, *, classes: int) -> None:
        self.images, self.labels, self.classes = images, labels, classes

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def read(self, items: Sequence[Item]) -> Batch:
        """One gather per batch."""
        index, key = index_and_key(items)
        return {"image": self.images[index], "label": self.labels[index], "index": index, "key": key}


def index_and_key(items: Sequence[Item]) -> tuple[Tensor, Tensor]:
    """The pairs as two int64 tensors (b,)."""
    index, key = torch.tensor(items, dtype=torch.int64).reshape(-1, 2).unbind(1)
    return index, key


def from_uint8(batch: Batch) -> Batch:
    """The batch with its image, uint8, as float32 in [-1, 1]: a loader that carries bytes carries a quarter."""
    return {**batch, "image": batch["image"].float().div_(127.5).sub_(1)}


def with_keys(items: Sequence[Item | int]) -> list[Item]:
    """Pairs as they are, and bare indices with a key of their own."""
    return [i if isinstance(i, tuple) else (i, _default_key(i)) for i in items]


def _default_key(index: int) -> int:
    return int(sample_keys(0, 0, np.array([index]))[0])


def _no_collate(batch: Any) -> Any:
    """Collation that has nothing left to do; a named function, as workers may have to pickle it."""
    return batch


def _ignore_signals(worker: int) -> None:
    """Let the training process decide what signals to the whole group mean: it may want to finish its step."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def at_least(name: str, value: int, minimum: int, remedy: str) -> None:
    """Refuse an argument below its minimum."""
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}: {remedy}")


def accumulated_batches(trainer: Trainer) -> int:
    """Batches of this epoch whose gradients wait for more before the next step; a checkpoint does not hold them."""
    loop: Any = trainer.fit_loop
    batches: int = loop.epoch_loop.batch_progress.current.processed
    return batches % trainer.accumulate_grad_batches if batches < loop.max_batches else 0


class ImageDataModule(LightningDataModule, ABC):
    """Train, val and test loaders over image splits.

    Subclasses set `channels` and `size` (pixels of a side) and implement `build`; `values` is the number of equidistant
    values from -1 to 1 that a pixel can take.

    Args:
        batch_size: training images per step and process.
        eval_batch_size: images per validation or test batch and process; `batch_size` if None.
        workers: loader processes per split; 0 reads in the training process.
        seed: chooses the order of training and the samples' keys, not the splits.
    """

    channels: int
    size: int
    values: int = 256

    def __init__(self, *, batch_size: int, eval_batch_size: int | None = None, workers: int = 0, seed: int = 0) -> None:
        super().__init__()
        eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        at_least("batch_size", batch_size, 1, "set the images per step and process")
        at_least("eval_batch_size", eval_batch_size, 1, "leave it out to use batch_size")
        at_least("workers", workers, 0, "use 0 to load in the training process")
        at_least("seed", seed, 0, "choose any other whole number")
        self.batch_size, self.eval_batch_size, self.workers, self.seed = batch_size, eval_batch_size, workers, seed
        self._splits: Mapping[Split, ImageDataset] | None = None

    @abstractmethod
    def build(self) -> Mapping[Split, ImageDataset]:
        """The three splits; raises where the data is missing or unfit."""

    @property
    def classes(self) -> int:
        """Number of classes, 0 without labels."""
        return self.dataset("train").classes

    def setup(self, stage: str | None = None) -> None:
        """Find the data, once; for "fit", also make sure that there is a batch of it."""
        if self._splits is None:
            self._splits = self.build()
        if stage == "fit":
            self._check_enough_images(ShuffledShard(self._splits["train"]))
            held, processes = len(self._splits["val"]), ShuffledShard(self._splits["val"]).share[1]
            if held < processes:
                raise ValueError(
                    f"validation images must be at least as many as processes, got {held} for {processes}: "
                    "hold out more, or use fewer processes"
                )

    def teardown(self, stage: str) -> None:
        """Tell how many images could not be read. Called when a run has come to its end, on all processes."""
        from datamodules.unreadable import report_unreadable  # late: it imports this module

        if self._splits is not None and self.trainer is not None:
            report_unreadable(self._splits, Path(self.trainer.default_root_dir))

    def dataset(self, split: Split) -> ImageDataset:
        """The images of a split, as training or evaluation reads them."""
        self.setup()
        assert self._splits is not None
        if split not in self._splits:
            raise ValueError(f"split must be one of {', '.join(self._splits)}, got {split!r}: choose one of these")
        return self._splits[split]

    def images(self, split: Split, batch_size: int, *, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """The whole split in file order, without augmentation; only every `world`-th image, from `rank` on."""
        at_least("batch_size", batch_size, 1, "set the images per batch")
        data = self.dataset(split).plain()
        shard = ShuffledShard(data, seed=self.seed, shuffle=False, drop_last=False, rank=rank, world=world)
        loader = DataLoader(
            RawBatches(data), batch_size, sampler=shard, num_workers=self.workers, collate_fn=_no_collate
        )
        # None may be readable in one.
        return (data.finish(batch) for batch in loader if len(batch["index"]))

    def images_at(self, split: Split, batches: Sequence[list[int]]) -> Iterator[Batch]:
        """The images of the listed indices without augmentation, a batch per list; unreadable ones are left out."""
        data = self.dataset(split).plain()
        loader = DataLoader(RawBatches(data), batch_sampler=batches, num_workers=self.workers, collate_fn=_no_collate)
        return (data.finish(batch) for batch in loader)

    def train_dataloader(self) -> ResumableLoader:
        """Batches of equal size in an order that a resumed run continues."""
        data = self.dataset("train")
        shard = ShuffledShard(data, seed=self.seed)
        self._check_enough_images(shard)
        options = self._options(shard, self.batch_size)
        return ResumableLoader(RawBatches(data), progress=self._epoch_progress, drop_last=True, **options)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Every image once, in file order, with the same keys every time."""
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """Every image once, in file order, with the same keys every time."""
        return self._eval_loader("test")

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move what is computed with; indices, keys and seeds are read on the CPU, where that waits for nothing."""
        if not isinstance(batch, dict):
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        stay = {name: batch[name] for name in ("index", "key", "seed") if name in batch}
        rest = {name: value for name, value in batch.items() if name not in stay}
        return super().transfer_batch_to_device(rest, device, dataloader_idx) | stay

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Finish the batch where it is computed with."""
        return self.dataset("train").finish(batch) if isinstance(batch, dict) and "index" in batch else batch

    def _eval_loader(self, split: Split) -> DataLoader[Batch]:
        data = self.dataset(split)
        shard = ShuffledShard(data, seed=self.seed, shuffle=False, drop_last=False)
        return DataLoader(RawBatches(data), **self._options(shard, self.eval_batch_size))

    def _options(self, shard: ShuffledShard, batch_size: int) -> dict[str, Any]:
        return {
            "batch_size": batch_size,
            "sampler": shard,
            "num_workers": self.workers,
            "persistent_workers": self.workers > 0,
            "pin_memory": torch.cuda.is_available(),
            "collate_fn": _no_collate,
            "worker_init_fn": _ignore_signals,
        }

    def _check_enough_images(self, shard: ShuffledShard) -> None:
        """Lightning ends a fit without any batch at once and in silence: refuse it."""
        needed = self.batch_size * shard.share[1]
        if shard.size < needed:
            raise ValueError(
                f"batch_size must leave at least one batch per epoch, got {self.batch_size} x {shard.share[1]} "
                f"process(es) = {needed} with {shard.size} training images: lower batch_size or add images"
            )

    def _epoch_progress(self) -> tuple[int, int] | None:
        """Batches processed in this epoch and batches of an epoch, by the trainer's count."""
        if self.trainer is None:
            return None
        loop: Any = self.trainer.fit_loop
        # `processed`, not `ready`: a batch that was fetched when the run died must come again.
        return loop.epoch_loop.batch_progress.current.processed - accumulated_batches(self.trainer), loop.max_batches
