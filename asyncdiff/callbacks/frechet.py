"""Evaluate the Fréchet distance of generated images during a run, with that of real held-out images as a floor."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from tqdm.auto import tqdm

from asyncdiff.callbacks.ema import EMA, ema_weights
from asyncdiff.callbacks.periodic_image import cycle_labels
from asyncdiff.callbacks.periodic_metric import PeriodicMetric
from asyncdiff.callbacks.split_work import rank_indices
from asyncdiff.callbacks.tensorboard import tensorboard_loggers
from asyncdiff.callbacks.validation_images import data_module
from asyncdiff.checkpoints import object_config
from asyncdiff.checkpoints.atomic_files import write_atomically
from asyncdiff.checks import MAX_IMAGES, at_least, check_seeds
from asyncdiff.evaluation import FrechetDistance
from asyncdiff.evaluation.features.base import as_features
from asyncdiff.evaluation.result_card import make_card, software
from asyncdiff.noise.masks import Mask
from asyncdiff.sampling.samplers import ImageSampler
from asyncdiff.training.lightning_module import AsyncDiffusion


class Frechet(PeriodicMetric):
    """Logs frechet/NAME, the distance of generated images from the training split in the feature space NAME.

    Also logs frechet/NAME_real, the distance of real held-out images (the floor for this number of images), and, if
    there is a mask, frechet/NAME_inpainted, the distance of held-out images whose unknown pixels were generated without
    class labels. Distances shrink as the number of images grows: compare only those of equal `count`. The evaluation
    protocol is logged to TensorBoard as the text protocol/NAME. At the end of a fit, protocol and last metrics are
    written to the result card RUN/evaluation/frechet_NAME.json.

    For a latent diffusion model all images are decoded, real and generated ones: the reference are the autoencoder's
    reconstructions of the training split, so the distances do not include its reconstruction error.

    Args:
        features: `Features`, or any module that maps images in [-1, 1] to features (b, d).
        count: number of generated images; None means as many as held-out images, so that the floor has the same bias.
        mask: known pixels of images to inpaint; None means that no images are inpainted.
        sampler: sampler of the images; None means the model's own.
        every_n_steps: number of optimizer steps between evaluations; 0 evaluates only at the end of training.
        batch_size: number of images that go through the network together.
        first_seed: seed of the first image.
        name: NAME in the tags; None means the name of the features. Set it if two callbacks use the same features.
    """

    def __init__(
        self,
        features: nn.Module,
        count: int | None = None,
        mask: Mask | None = None,
        sampler: ImageSampler | None = None,
        every_n_steps: int = 0,
        batch_size: int = 128,
        first_seed: int = 0,
        name: str | None = None,
    ):
        if count is not None:
            remedy = "a covariance needs two images, a reliable one many more than the number of features"
            at_least("count", count, 2, remedy, MAX_IMAGES)
        at_least("batch_size", batch_size, 1, "set the number of images per batch")
        check_seeds("first_seed", [first_seed])
        features = as_features(features)
        super().__init__(name or features.name, every_n_steps)
        self.features = features
        self.count = count
        self.mask = mask
        self.sampler = sampler
        self.batch_size = batch_size
        self.first_seed = first_seed
        self._metric: FrechetDistance | None = None
        self._protocol: dict[str, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: AsyncDiffusion) -> None:  # type: ignore[override]
        """Reset the metric, so that the reference is computed from the data of this fit."""
        super().on_train_start(trainer, pl_module)
        self._metric = None

    def on_train_end(self, trainer: Trainer, pl_module: AsyncDiffusion) -> None:  # type: ignore[override]
        """Evaluate the trained model and write the result card."""
        super().on_train_end(trainer, pl_module)
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir) / "evaluation"
            folder.mkdir(parents=True, exist_ok=True)
            card = make_card({**self._protocol, "step": trainer.global_step}, self.results)
            write_atomically(folder / f"frechet_{self.name}.json", [json.dumps(card, indent=2).encode()])

    def compute_metrics(self, trainer: Trainer, module: AsyncDiffusion) -> dict[str, float]:
        """Return the distances by tag."""
        # Some features are trained first, which is impossible in inference mode, as in `validate` and `test`.
        with torch.inference_mode(False), torch.no_grad():
            self._compute(trainer, module)
        return self.results

    def _compute(self, trainer: Trainer, module: AsyncDiffusion) -> None:
        metric = self._prepare_metric(trainer, module)
        name = f"frechet/{self.name}"
        if f"{name}_real" not in self.results:
            self.results[f"{name}_real"] = _distance(metric, self._real_images(trainer, module, "val"))
        with ema_weights(trainer, module):
            self.results[name] = _distance(metric, self._generated_images(trainer, module))
            if self.mask is not None:
                self.results[f"{name}_inpainted"] = _distance(
                    metric, self._inpainted_images(trainer, module, self.mask)
                )

    def _prepare_metric(self, trainer: Trainer, module: AsyncDiffusion) -> FrechetDistance:
        """Prepare the metric with the training split as its reference, once per fit, and return it."""
        if self._metric is None:
            self.features.to(module.device)
            batches = _datamodule(trainer).images("train", self.batch_size)
            self.features.prepare({**batch, "image": module.decode(batch["image"])} for batch in batches)
            self._metric = FrechetDistance(self.features).to(module.device)
            for images in self._real_images(trainer, module, "train"):
                self._metric.update(images, real=True)
            if trainer.is_global_zero:
                self._protocol = self._describe(trainer, module)
                text = "\n".join(f"    {line}" for line in json.dumps(self._protocol, indent=2).splitlines())
                for logger in tensorboard_loggers(trainer):
                    logger.experiment.add_text(f"protocol/{self.name}", text, trainer.global_step)
        return self._metric

    def _describe(self, trainer: Trainer, module: AsyncDiffusion) -> dict[str, Any]:
        """Return the evaluation protocol as plain dicts and lists; the features must be prepared."""
        data, count = _datamodule(trainer), self._count(trainer)
        reference: dict[str, Any] = {"data": object_config.class_path(type(data)), "split": "train"}
        if hasattr(data, "dataset"):
            images = data.dataset("train").plain()
            fingerprint = images.fingerprint() if hasattr(images, "fingerprint") else None
            reference |= {"count": len(images), "fingerprint": fingerprint}
        samples = {
            "count": count,
            "seeds": [self.first_seed, self.first_seed + count - 1],
            "labels": f"{module.classes} classes in turn" if module.classes else None,
            "sampler": object_config.describe_or_class(self.sampler or module.sampler),
            "codec": None if module.codec is None else module.codec.fingerprint(),
            "rounding": None,  # only inside the features
        }
        return {
            "measurement": "run",
            "precision": str(trainer.precision),
            "weights": "ema" if any(isinstance(c, EMA) for c in trainer.callbacks) else "raw",  # type: ignore[attr-defined]
            "features": self.features.fingerprint(),
            "reference": reference,
            "samples": samples,
            "mask": None if self.mask is None else object_config.describe_or_class(self.mask),
            **software(module.device),
        }

    def _real_images(self, trainer: Trainer, module: AsyncDiffusion, split: str) -> Iterator[Tensor]:
        for batch in self._rank_batches(trainer, split):
            yield module.decode(batch["image"].to(module.device))

    def _rank_batches(self, trainer: Trainer, split: str) -> Iterator[Any]:
        """Yield this process's batches of a split; every image belongs to one process."""
        rank, world = trainer.global_rank, trainer.world_size
        yield from _datamodule(trainer).images(split, self.batch_size, rank=rank, world=world)

    def _generated_images(self, trainer: Trainer, module: AsyncDiffusion) -> Iterator[Tensor]:
        for indices, valid in self._batches(trainer, self._count(trainer), "generated"):
            labels = cycle_labels(module, indices)
            seeds = [self.first_seed + i for i in indices]
            generated = module.generate(seeds, labels, sampler=self.sampler, batch_size=self.batch_size)
            yield module.decode(generated[:valid])

    def _count(self, trainer: Trainer) -> int:
        return self.count or len(_datamodule(trainer).dataset("val"))

    def _inpainted_images(self, trainer: Trainer, module: AsyncDiffusion, mask: Mask) -> Iterator[Tensor]:
        batches = -(-len(_datamodule(trainer).dataset("val")) // (self.batch_size * trainer.world_size))
        for batch in self._progress_bar(trainer, self._rank_batches(trainer, "val"), batches, "inpainted"):
            images = batch["image"].to(module.device)
            seeds = [self.first_seed + i for i in batch["index"].tolist()]
            known = mask.per_image(*images.shape[2:], seeds=batch["index"].tolist()).to(module.device)
            inpainted = module.inpaint(images, known, seeds=seeds, sampler=self.sampler, batch_size=self.batch_size)
            yield module.decode(inpainted)

    def _batches(self, trainer: Trainer, count: int, label: str) -> Iterator[tuple[list[int], int]]:
        """Yield this process's indices in batches, each with the number of indices that are not duplicates."""
        own_indices = rank_indices(trainer, count)
        unique = len(range(trainer.global_rank, count, trainer.world_size))
        starts = range(0, len(own_indices), self.batch_size)
        for first in self._progress_bar(trainer, starts, len(starts), label):
            indices = own_indices[first : first + self.batch_size]
            yield indices, max(0, min(len(indices), unique - first))

    @staticmethod
    def _progress_bar(trainer: Trainer, batches: Iterable[Any], total: int, label: str) -> Iterable[Any]:
        disabled = not trainer.is_global_zero or trainer.progress_bar_callback is None
        return tqdm(batches, desc=f"Fréchet, {label}", total=total, unit="batch", leave=False, disable=disabled)


def _distance(metric: FrechetDistance, images: Iterator[Tensor]) -> float:
    """Return the distance of the images from the metric's reference."""
    metric.reset()
    for batch in images:
        metric.update(batch, real=False)
    return metric.compute().item()


def _datamodule(trainer: Trainer) -> Any:
    return data_module(trainer, "images", user="Frechet needs")
