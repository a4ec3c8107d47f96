"""LightningModule that owns a `DiffusionModel`: the type that checks, strategies and callbacks work with."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

from jaxtyping import Bool, Float
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from asyncdiff.denoising.denoiser import Denoiser
from asyncdiff.denoising.targets import Target
from asyncdiff.latents import Codec
from asyncdiff.model import DiffusionModel
from asyncdiff.noise.processes import Process
from asyncdiff.sampling.samplers import ImageSampler
from asyncdiff.shapes import Image, Latents
from asyncdiff.training.lightning_internals import attached_trainer


class DiffusionModule(LightningModule):
    """LightningModule around a model that draws; samples in the trainer's precision.

    Attributes:
        denoiser: denoiser that is trained; a subclass may set its own.
        latents: fingerprints of the codec, see `asyncdiff.training.compatibility.record_latents`.
        labels: fingerprint of the classes that the labels mean, from the data or a checkpoint; None if unknown.
    """

    denoiser: Denoiser
    latents: dict[str, Any]
    labels: dict[str, Any] | None = None
    _model: DiffusionModel

    @property
    def model(self) -> DiffusionModel:
        """Model that draws with this module's denoiser."""
        return replace(self._model, denoiser=self.denoiser)

    @model.setter
    def model(self, model: DiffusionModel) -> None:
        self._model = model
        self.denoiser = model.denoiser  # registers the weights under their names in checkpoints

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
