"""The part of a LightningModule that draws what `predict` asks for."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch.utils.data import DataLoader, IterableDataset

from asyncdiff.checks import at_least
from asyncdiff.shapes import Image
from asyncdiff.tasks import Generate, Request, Task


class PredictMixin(LightningModule):
    """Draws the pictures of a task, each process its share of them.

    Attributes:
        task: what is drawn; whole images if None.
        predict_count: pictures, with seeds 0, 1, ...; so many of every photo, if the task has any.
        predict_seeds: the seeds themselves; 0 .. predict_count - 1 if None.
        predict_labels: their classes in turn, see `asyncdiff.tasks.Task.requests`.
    """

    task: Task | None
    predict_count: int
    predict_seeds: Sequence[int] | None
    predict_labels: Sequence[int] | None
    shape: Any

    def predict_requests(self) -> list[Request]:
        """Every picture that `predict` draws, on whichever process."""
        seeds = range(self.predict_count) if self.predict_seeds is None else self.predict_seeds
        return self._task.requests(self, seeds=seeds, labels=self.predict_labels)  # type: ignore[arg-type]

    def predict_dataloader(self) -> DataLoader:
        """The batches of requests that `predict` draws, this process's share of them."""
        rank, world = (self.global_rank, self.trainer.world_size) if self._trainer is not None else (0, 1)
        mine = self.predict_requests()[rank::world]
        # A process without any takes an empty batch: Lightning would let it go, and others wait for it for ever.
        share = self._task.batches(self, mine) if mine else [[]]  # type: ignore[arg-type]
        return DataLoader(_Batches(share), batch_size=None, collate_fn=list)

    def predict_step(self, batch: list[Request], batch_idx: int) -> Image:
        """The pictures of a batch of requests."""
        if not batch:
            return torch.empty(0, *self.shape, device=self.device)
        return self._task.finished(self, batch)  # type: ignore[arg-type]

    @property
    def _task(self) -> Task:
        return self.task or Generate()


def check_predictions(model: PredictMixin) -> None:
    """Raise ValueError for numbers of pictures and seeds that nothing can be drawn with."""
    at_least("predict_count", model.predict_count, 1, "set the images to draw")
    seeds = model.predict_seeds
    if seeds is None:
        return
    if not seeds or min(seeds) < 0 or len({*seeds}) < len(seeds):
        raise ValueError(f"predict_seeds must be whole numbers from 0 on that differ, got {list(seeds)}: or null")


class _Batches(IterableDataset):
    """Batches as they are. Iterable, so that Lightning leaves the sharding to us."""

    def __init__(self, batches: Sequence[list[Request]]):
        self.batches = batches

    def __iter__(self) -> Iterator[list[Request]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)
