"""The Fréchet distance of generated images during a run, beside what real held-out images reach."""

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from tqdm.auto import tqdm

from asyncdiff.callbacks.ema import averaged_weights
from asyncdiff.callbacks.figure import cycled_labels
from asyncdiff.callbacks.sharding import share
from asyncdiff.evaluation import FrechetDistance
from asyncdiff.evaluation.features import as_features
from asyncdiff.masks import Mask
from asyncdiff.module import AsyncDiffusion
from asyncdiff.sampling import Sampler


class Frechet(Callback):
    """Logs frechet/NAME, the distance of generated images from the training split in the feature space NAME.

    Beside it stand frechet/NAME_real, the distance of real held-out images (the floor at their number), and with a mask
    frechet/NAME_inpainted, that of held-out images whose unknown part was generated, labels not told. A distance
    shrinks with the number of images: compare only numbers of equal `count`.

    Args:
        features: `Features`, or any module from images in [-1, 1] to (b, d).
        count: generated images; as many as are held out by default, so that the floor has the same bias.
        mask: what is known in the inpaintings; none are made without.
        sampler: the module's own by default.
        every_n_steps: 0 measures at the end of training only.
        batch_size: images that go through the network together.
        first_seed: seed of the first image.
    """

    def __init__(
        self,
        features: nn.Module,
        count: int | None = None,
        mask: Mask | None = None,
        sampler: Sampler | None = None,
        every_n_steps: int = 0,
        batch_size: int = 128,
        first_seed: int = 0,
    ):
        if count is not None and count < 2:
            raise ValueError(f"count must be at least 2 for a covariance, got {count}")
        self.features = as_features(features)
        self.count = count
        self.mask = mask
        self.sampler = sampler
        self.every_n_steps = every_n_steps
        self.batch_size = batch_size
        self.first_seed = first_seed
        self.results: dict[str, float] = {}
        self._metric: FrechetDistance | None = None
        self._last_step = -1

    @property
    def state_key(self) -> str:
        """Several feature spaces are several callbacks."""
        return f"Frechet{{features={self.features.name}}}"

    def on_train_batch_end(self, trainer: Trainer, pl_module: AsyncDiffusion, *_: Any) -> None:  # type: ignore[override]
        """Measure when it is due."""
        step = trainer.global_step
        if self.every_n_steps and step != self._last_step and step % self.every_n_steps == 0:
            self._measure(trainer, pl_module)
            for name, value in self.results.items():
                pl_module.log(name, value, logger=False)  # for callbacks that monitor it

    def on_train_end(self, trainer: Trainer, pl_module: AsyncDiffusion) -> None:  # type: ignore[override]
        """Measure the result, unless the last step has just done so."""
        if trainer.global_step != self._last_step:
            self._measure(trainer, pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: AsyncDiffusion) -> None:  # type: ignore[override]
        """Measure a trained model."""
        self._measure(trainer, pl_module)
        pl_module.log_dict(self.results, logger=False)

    def _measure(self, trainer: Trainer, module: AsyncDiffusion) -> None:
        self._last_step = trainer.global_step
        metric = self._prepared(trainer, module)
        name = f"frechet/{self.features.name}"
        if f"{name}_real" not in self.results:
            self.results[f"{name}_real"] = _distance(metric, self._real(trainer, "val"))
        with averaged_weights(trainer, module):
            self.results[name] = _distance(metric, self._generated(trainer, module))
            if self.mask is not None:
                self.results[f"{name}_inpainted"] = _distance(metric, self._inpainted(trainer, module, self.mask))
        for logger in trainer.loggers:
            logger.log_metrics(self.results, step=trainer.global_step)

    def _prepared(self, trainer: Trainer, module: AsyncDiffusion) -> FrechetDistance:
        """The metric with the training split as its reference, prepared once a run."""
        if self._metric is None:
            self.features.to(module.device)
            self.features.prepare(_data(trainer).images("train", self.batch_size))
            self._metric = FrechetDistance(self.features).to(module.device)
            for images in self._real(trainer, "train"):
                self._metric.update(images.to(module.device), real=True)
        return self._metric

    def _real(self, trainer: Trainer, split: str) -> Iterator[Tensor]:
        rank, world = trainer.global_rank, trainer.world_size
        for batch in _data(trainer).images(split, self.batch_size, rank=rank, world=world):
            yield batch["image"].to(self._device())

    def _generated(self, trainer: Trainer, module: AsyncDiffusion) -> Iterator[Tensor]:
        count = self.count or len(_data(trainer).dataset("val"))
        for indices, valid in self._batches(trainer, count, "generated"):
            labels = cycled_labels(module, indices)
            seeds = [self.first_seed + i for i in indices]
            yield module.generate(seeds, labels, sampler=self.sampler, batch_size=self.batch_size)[:valid]

    def _inpainted(self, trainer: Trainer, module: AsyncDiffusion, mask: Mask) -> Iterator[Tensor]:
        # Every process reads all held-out images in the same order and completes its share of them.
        images = torch.cat([b["image"] for b in _data(trainer).images("val", self.batch_size)])
        known = mask(images.shape[2], images.shape[3])
        for indices, valid in self._batches(trainer, len(images), "inpainted"):
            seeds = [self.first_seed + i for i in indices]
            chosen = images[indices].to(module.device)
            yield module.inpaint(chosen, known, seeds=seeds, sampler=self.sampler, batch_size=self.batch_size)[:valid]

    def _batches(self, trainer: Trainer, count: int, what: str) -> Iterator[tuple[list[int], int]]:
        """This process's indices in batches, each with how many of them are its own to count."""
        mine = share(trainer, count)
        own = len(range(trainer.global_rank, count, trainer.world_size))
        starts = range(0, len(mine), self.batch_size)
        quiet = not trainer.is_global_zero or trainer.progress_bar_callback is None
        for first in tqdm(starts, desc=f"Fréchet, {what}", unit="batch", leave=False, disable=quiet):
            indices = mine[first : first + self.batch_size]
            yield indices, max(0, min(len(indices), own - first))

    def _device(self) -> torch.device:
        return next(iter(self.features.parameters()), torch.empty(0)).device


def _distance(metric: FrechetDistance, images: Iterator[Tensor]) -> float:
    """Distance of the images from the metric's reference."""
    metric.reset()
    for batch in images:
        metric.update(batch, real=False)
    return metric.compute().item()


def _data(trainer: Trainer) -> Any:
    data = getattr(trainer, "datamodule", None)
    if data is None or not hasattr(data, "images"):
        raise ValueError("Frechet needs a data module with a method images(split, batch_size), such as Digits")
    return data
