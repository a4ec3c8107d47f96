"""Part of the LightningModule that samples with the model it trains, and implements `predict`."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from asyncdiff.denoising.targets import Target
from asyncdiff.latents import Codec
from asyncdiff.model import DiffusionModel
from asyncdiff.noise.processes import Process
from asyncdiff.sampling.samplers import ImageSampler
from asyncdiff.shapes import Image, Latents
from asyncdiff.tasks import Generate, Request, Task
from asyncdiff.training.lightning_internals import attached_trainer
from asyncdiff.training.settings import PredictSettings


class PredictMixin(LightningModule):
    """Samples with the model that is trained, in the trainer's precision; `predict` splits images over processes.

    Attributes:
        model: model that draws; it shares its denoiser with the LightningModule.
        predict: which images `predict` generates.
    """

    model: DiffusionModel
    predict: PredictSettings

    @property
    def network(self) -> nn.Module:
        """Network that predicts the target."""
        return self.model.network

    @property
    def process(self) -> Process:
        """Noise process: alpha(t) and sigma(t)."""
        return self.model.denoiser.process

    @property
    def target(self) -> Target:
        """Quantity that the network predicts."""
        return self.model.denoiser.target

    @property
    def sampler(self) -> ImageSampler:
        """Default sampler."""
        return self.model.sampler

    @sampler.setter
    def sampler(self, sampler: ImageSampler) -> None:
        self.model = replace(self.model, sampler=sampler)

    @property
    def codec(self) -> Codec | None:
        """Autoencoder of a latent diffusion model; None for a pixel-space model."""
        return self.model.codec

    @codec.setter
    def codec(self, codec: Codec | None) -> None:
        self.model = replace(self.model, codec=codec)

    @property
    def image_size(self) -> int:
        """Height and width of the images in pixels, or of the latents."""
        return self.model.image_size

    @property
    def classes(self) -> int:
        """Number of classes that the network is conditioned on; 0 if it is unconditional."""
        return self.model.classes

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (channels, height, width) of the images or latents that the model generates."""
        return self.model.shape

    def generate(
        self,
        seeds: Sequence[int],
        labels: Sequence[int] | None = None,
        *,
        sampler: ImageSampler | None = None,
        batch_size: int = 64,
    ) -> Image:
        """Generate one image per seed; see `DiffusionModel.generate` for the arguments and the result."""
        with self.sampling_context():
            return self.model.generate(seeds, labels, sampler=sampler, batch_size=batch_size)

    def inpaint(
        self,
        image: Float[Tensor, "*n c h w"],
        known: Bool[Tensor, "*m mask_h mask_w"],
        *,
        seeds: Sequence[int] | None = None,
        labels: Sequence[int] | None = None,
        sampler: ImageSampler | None = None,
        batch_size: int = 64,
    ) -> Image:
        """Generate the unknown pixels of images; see `DiffusionModel.inpaint` for the arguments and the result."""
        with self.sampling_context():
            return self.model.inpaint(image, known, seeds=seeds, labels=labels, sampler=sampler, batch_size=batch_size)

    def encode(self, images: Image) -> Latents:
        """Encode images (b, c, h, w) in [-1, 1] into the model's space: latents if it has a codec, else unchanged."""
        return self.model.encode(images)

    def decode(self, x: Latents) -> Image:
        """Decode generated latents into images approximately in [-1, 1]; without a codec, return `x` unchanged."""
        return self.model.decode(x)

    def sampling_context(self) -> AbstractContextManager[Any]:
        """Return the context for sampling: the trainer's precision inside a run, float32 otherwise."""
        trainer = attached_trainer(self)
        return nullcontext() if trainer is None else trainer.precision_plugin.forward_context()

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
