"""A trained model that draws images: denoiser, sampler, codec and image size. Needs no Lightning.

    model = DiffusionModel.load("runs/digits")
    images = model.generate(seeds=range(16))

`asyncdiff.AsyncDiffusion` is the LightningModule that trains such a model; its checkpoints and exports load into both.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from asyncdiff.checkpoints import check_weights, choose_weights, locate_checkpoint, object_config, read_checkpoint
from asyncdiff.checkpoints.build_limits import limited_to
from asyncdiff.checkpoints.export.hub import locate_export
from asyncdiff.checks import check_labels, check_seeds
from asyncdiff.denoising.denoiser import Denoiser
from asyncdiff.denoising.targets import Target
from asyncdiff.latents import Codec
from asyncdiff.noise.processes import Process, RectifiedFlow
from asyncdiff.precision import Precision, check_precision, computing_in, precision_of_run
from asyncdiff.sampling import engine
from asyncdiff.sampling.samplers import ImageSampler, Sampler
from asyncdiff.shapes import Image, Latents, check_pixels

DENOISER = "denoiser."  # prefix of the denoiser's weights in checkpoints
IMAGE_SIZE = 32  # default of `image_size`


@runtime_checkable
class Model(Protocol):
    """Interface of models that draw, implemented by `DiffusionModel` and by the LightningModule `AsyncDiffusion`."""

    @property
    def denoiser(self) -> Denoiser:
        """Trained denoiser."""

    @property
    def sampler(self) -> ImageSampler:
        """Sampler of the model."""

    @property
    def codec(self) -> Codec | None:
        """Autoencoder of a latent diffusion model; None for a pixel-space model."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the training images, in pixels, or in latents if the model has a codec."""

    @property
    def classes(self) -> int:
        """Number of class labels; 0 if the model is unconditional."""

    def encode(self, images: Image) -> Latents:
        """Encode images into the model's space."""

    def decode(self, x: Latents) -> Image:
        """Decode results in the model's space into images."""

    def sampling_context(self) -> AbstractContextManager[Any]:
        """Return the context for sampling, in the model's precision."""


@dataclass(frozen=True)
class DiffusionModel:
    """Trained model: generates and inpaints images, of pixels or of an autoencoder's latents.

    It never changes: `dataclasses.replace(model, sampler=...)` returns a model with another sampler and the same
    weights.

    Attributes:
        denoiser: trained denoiser.
        sampler: default sampler of `generate` and `inpaint`.
        image_size: height and width of the images in pixels, or of the latents.
        codec: autoencoder between images and the latents of a latent diffusion model; None for a pixel-space model.
        precision: precision that the model computes in, see `asyncdiff.precision`; None for the settings around it,
            such as those of a trainer.

    Example:
        >>> from asyncdiff.networks import DiT
        >>> network = DiT(channels=1, patch_size=2, dim=32, depth=1, heads=2, classes=10)
        >>> model = DiffusionModel(Denoiser(network, RectifiedFlow()), Sampler(steps=2), image_size=8)
        >>> model.generate(seeds=[0, 1], labels=[3, 7]).shape
        torch.Size([2, 1, 8, 8])
    """

    denoiser: Denoiser
    sampler: ImageSampler
    image_size: int = IMAGE_SIZE
    codec: Codec | None = None
    precision: Precision | None = None

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: torch.device | str = "cpu",
        *,
        weights: Literal["auto", "ema", "raw"] = "auto",
        precision: Precision | None = None,
        allow: Sequence[str] = ("asyncdiff",),
    ) -> "DiffusionModel":
        """Load a model in evaluation mode, ready to draw.

        Args:
            path: run directory of train.py, .ckpt file of a run, or folder of an export.
            device: device to load the model to.
            weights: "auto" selects the EMA weights if there are any (the first EMA if several), "ema" requires them,
                "raw" selects the raw weights (last step).
            precision: "float32", "tf32" or "bf16"; None means bf16 if the run was trained in 16 bits and the device has
                bfloat16 in hardware, else float32.
            allow: packages whose classes may be imported to rebuild the model.

        Returns:
            The model on `device`.

        Raises:
            FileNotFoundError: there is no such file or run.
            ValueError: the file is damaged or not a checkpoint of AsyncDiffusion, or lacks the weights, or the device
                lacks the precision.
        """
        file = locate_checkpoint(path)
        contents = read_checkpoint(file, device)
        return cls.from_checkpoint(contents, file, device, weights=weights, precision=precision, allow=allow)

    @classmethod
    def from_pretrained(cls, path_or_repo: str | Path, revision: str | None = None, **options: Any) -> "DiffusionModel":
        """Load an exported model in evaluation mode, ready to draw; see docs/sharing.md.

        Args:
            path_or_repo: folder written by `python -m asyncdiff export`, or a repository OWNER/NAME on the Hugging Face
                Hub with such files.
            revision: branch, tag or commit of the repository.
            **options: `device`, `precision` and `allow`, see `load`.

        Returns:
            The model.
        """
        return cls.load(locate_export(path_or_repo, revision), **options)

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Mapping[str, Any],
        file: str | Path,
        device: torch.device | str = "cpu",
        *,
        weights: Literal["auto", "ema", "raw"] = "auto",
        precision: Precision | None = None,
        allow: Sequence[str] = ("asyncdiff",),
    ) -> "DiffusionModel":
        """Build a model from the contents of a checkpoint or export, in evaluation mode.

        Args:
            checkpoint: contents, from `asyncdiff.checkpoints.read_checkpoint`.
            file: path of the file, for error messages.
            device: device to load the model to.
            weights: which weights to select, as in `load`.
            precision: precision to draw in, as in `load`.
            allow: packages whose classes may be imported to rebuild the model.

        Returns:
            The model on `device`.
        """
        precision = precision or precision_of_run(checkpoint.get("precision"), device)
        check_precision("precision", precision, device)
        state, _ = choose_weights(checkpoint, weights, file)
        with limited_to(state, file):
            model = build_model(checkpoint["recipe"], allow)
        if not _is_own(checkpoint["recipe"]):  # a subclass may train more than the denoiser
            state = {name: weight for name, weight in state.items() if name.startswith(DENOISER)}
        own = model.denoiser.state_dict(keep_vars=True)
        check_weights({DENOISER + name: weight for name, weight in own.items()}, state, file)
        model.denoiser.load_state_dict({name.removeprefix(DENOISER): weight for name, weight in state.items()})
        model.denoiser.to(device).eval()
        return replace(model, precision=precision)

    @classmethod
    def assemble(
        cls,
        network: nn.Module,
        process: Process | None = None,
        target: Target | None = None,
        sampler: ImageSampler | None = None,
        codec: Codec | None = None,
        image_size: int = IMAGE_SIZE,
    ) -> "DiffusionModel":
        """Return a model of these parts, with the defaults of `AsyncDiffusion` for those that are None.

        Args:
            network: network that predicts `target` from noisy images, level map and labels.
            process: noise process; `RectifiedFlow` by default.
            target: quantity that the network predicts; the velocity by default.
            sampler: default sampler; `Sampler()` by default.
            codec: autoencoder of a latent diffusion model.
            image_size: height and width of the images in pixels, or of the latents.

        Returns:
            The model.
        """
        return cls(Denoiser(network, process or RectifiedFlow(), target), sampler or Sampler(), image_size, codec)

    @property
    def network(self) -> nn.Module:
        """Network that predicts the target."""
        return self.denoiser.network

    @property
    def classes(self) -> int:
        """Number of classes that the network is conditioned on; 0 if it is unconditional."""
        return int(getattr(self.network, "classes", 0))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (channels, height, width) of the images or latents that the model generates."""
        return int(getattr(self.network, "channels", 3)), self.image_size, self.image_size

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return engine.device_of(self.denoiser)

    def generate(
        self,
        seeds: Sequence[int],
        labels: Sequence[int] | None = None,
        *,
        sampler: ImageSampler | None = None,
        batch_size: int = 64,
    ) -> Image:
        """Generate one image per seed, approximately in [-1, 1]; image i depends only on seed i and label i.

        A latent diffusion model returns latents: turn them into images with `decode`.

        Args:
            seeds: one seed per image.
            labels: one class label per image in 0 .. classes - 1; None for unconditional images.
            sampler: sampler of the images; None means the model's own.
            batch_size: number of images that go through the network together.

        Returns:
            Images or latents (len(seeds), *shape).
        """
        check_labels(labels, self.classes)
        with self.sampling_context():
            return engine.generate(
                self.denoiser,
                sampler or self.sampler,
                seeds=seeds,
                shape=self.shape,
                labels=labels,
                batch_size=batch_size,
            )

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
        """Generate the unknown pixels of images; the known ones are returned bit for bit.

        A latent diffusion model inpaints latents; `asyncdiff.tasks.Inpaint` encodes photos and decodes the results.

        Args:
            image: values in [-1, 1]; (c, h, w), inpainted once per seed, or (b, c, h, w).
            known: bool, True = known; (h, w) or (b, h, w).
            seeds: one seed per result; None means 0, 1, ...
            labels: one class label per result; None for unconditional inpainting.
            sampler: sampler of the images; None means the model's own.
            batch_size: number of images that go through the network together.

        Returns:
            Inpainted images or latents (b, c, h, w).
        """
        check_labels(labels, self.classes)
        if isinstance(seeds, Sequence):
            check_seeds("seeds", seeds)
        with self.sampling_context():
            return engine.inpaint(
                self.denoiser,
                sampler or self.sampler,
                image=image,
                known=known,
                seeds=seeds,
                labels=labels,
                batch_size=batch_size,
            )

    def encode(self, images: Image) -> Latents:
        """Encode images (b, c, h, w) in [-1, 1] into the model's space: latents if it has a codec, else unchanged."""
        check_pixels("images", images)
        if self.codec is None:
            return images
        with self.sampling_context():
            return self.codec.to(self.device).encode(images)

    def decode(self, x: Latents) -> Image:
        """Decode generated latents into images approximately in [-1, 1]; without a codec, return `x` unchanged."""
        if self.codec is None:
            return x
        with self.sampling_context():
            return self.codec.to(self.device).decode(x)

    def sampling_context(self) -> AbstractContextManager[Any]:
        """Return the context for sampling, in the model's precision; codecs use their own data type in it."""
        return nullcontext() if self.precision is None else computing_in(self.precision, self.device)


def build_model(recipe: Mapping[str, Any], allow: Sequence[str] = ("asyncdiff",)) -> DiffusionModel:
    """Build an untrained model from the object config of a LightningModule, without building the LightningModule.

    Args:
        recipe: object config in a checkpoint, with the keys class_path and init_args.
        allow: packages whose classes may be imported.

    Returns:
        The model, with the weights of a new network.

    Raises:
        ValueError: the class is not AsyncDiffusion or a subclass, or a package is not allowed.
    """
    if _is_own(recipe):
        names = ("network", "process", "target", "sampler", "codec", "image_size")
        if not object_config.is_object_config(recipe["init_args"].get("network")):
            raise ValueError(f"the checkpoint must describe its network, got {recipe['init_args'].get('network')}")
        given = {part: recipe["init_args"][part] for part in names if part in recipe["init_args"]}
        return DiffusionModel.assemble(**object_config.build(given, allow))
    built = object_config.build(dict(recipe), allow)  # a subclass, whose arguments may differ
    model = getattr(built, "model", None)
    if not isinstance(model, DiffusionModel):
        raise ValueError(
            f"the checkpoint must contain an AsyncDiffusion, got {recipe['class_path']}: load it with its own class"
        )
    return model


def _is_own(recipe: Mapping[str, Any]) -> bool:
    """Return whether an object config names the LightningModule of this package, not a subclass."""
    package, _, name = recipe["class_path"].rpartition(".")
    return name == "AsyncDiffusion" and package.partition(".")[0] == "asyncdiff"
