"""Part of the LightningModule that implements `predict`."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import DataLoader, IterableDataset

from asyncdiff.shapes import Image
from asyncdiff.tasks import Generate, Request, Task
from asyncdiff.training.diffusion_module import DiffusionModule
from asyncdiff.training.lightning_internals import attached_trainer
from asyncdiff.training.settings import PredictSettings


class PredictMixin(DiffusionModule):
    """Implements `predict`: generates the images of a task, split over the processes.

    Attributes:
        predict: which images to generate.
    """

    predict: PredictSettings

    def predict_requests(self) -> list[Request]:
        """Return the requests for all images of `predict`, over all processes."""
        seeds = range(self.predict.count) if self.predict.seeds is None else self.predict.seeds
        return self._task.requests(self.model, seeds=seeds, labels=self.predict.labels)

    def predict_dataloader(self) -> DataLoader:
        """Return this process's batches of requests."""
        trainer = attached_trainer(self)
        rank, world = (0, 1) if trainer is None else (self.global_rank, trainer.world_size)
        own = self.predict_requests()[rank::world]
        # A process without requests gets an empty batch; otherwise Lightning would skip it and the others wait forever.
        batches = self._task.batches(self.model, own, self.predict.batch_size) if own else [[]]
        return DataLoader(_Batches(batches), batch_size=None, collate_fn=list)

    def predict_step(self, batch: list[Request], batch_idx: int) -> Image:
        """Return the images of a batch of requests (b, c, h, w)."""
        if not batch:
            return torch.empty(0, *self.shape, device=self.device)
        with self.sampling_context():
            return self._task.sample_batch(self.model, batch, self.predict.batch_size)

    @property
    def _task(self) -> Task:
        return self.predict.task or Generate()


class _Batches(IterableDataset):
    """Iterable-style dataset of batches, so that Lightning does not add a distributed sampler."""

    def __init__(self, batches: Sequence[list[Request]]):
        self.batches = batches

    def __iter__(self) -> Iterator[list[Request]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)
