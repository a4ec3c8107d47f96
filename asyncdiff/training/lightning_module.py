"""Train, evaluate and sample from a diffusion model with the LightningModule `AsyncDiffusion`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from asyncdiff.checkpoints import choose_weights, object_config, read_checkpoint
from asyncdiff.checkpoints.build_limits import limited_to
from asyncdiff.checkpoints.export.hub import locate_export
from asyncdiff.denoising.loss import training_loss
from asyncdiff.denoising.targets import Target
from asyncdiff.denoising.validation import HELD_OUT_ERRORS, held_out_errors
from asyncdiff.denoising.weightings import Velocity, Weighting
from asyncdiff.latents import Codec, check_same_codec
from asyncdiff.model import IMAGE_SIZE, DiffusionModel
from asyncdiff.noise.level_samplers import AlongPath, LevelDraw, LevelSampler
from asyncdiff.noise.processes import Process
from asyncdiff.randomness import Generators, counter_key, normal, per_image, uniform
from asyncdiff.sampling.samplers import ImageSampler
from asyncdiff.shapes import Image, check_pixels
from asyncdiff.training import compatibility
from asyncdiff.training.argument_checks import (
    check_batches,
    check_codec,
    check_compiler,
    check_ranges,
    check_sampling,
    check_training,
)
from asyncdiff.training.fsdp2 import check_strategy, shard
from asyncdiff.training.image_mean import ImageMean
from asyncdiff.training.lightning_internals import (
    attached_trainer,
    correct_epoch,
    keep_gradients_in_buckets,
    leave_inputs_of_ddp,
    set_epoch,
    set_logged_step,
)
from asyncdiff.training.optimization import OptimizerMixin
from asyncdiff.training.predict_mixin import PredictMixin
from asyncdiff.training.settings import DEFAULT_OPTIMIZER, DEFAULT_PREDICT, OptimizerSettings, PredictSettings
from asyncdiff.training.warm_start import load_pretrained

TRAINING, EVALUATION = 0, 1  # first counter of the random streams, so that they never overlap


class AsyncDiffusion(PredictMixin, OptimizerMixin):
    """Diffusion model with one noise level per patch: trains on random level maps and samples images.

    All randomness of a training step is a function of `seed` and of the key of the batch's first sample, which the
    data module computes from (seed, epoch, position). The randomness of an evaluation is a function of `seed` and the
    index of each image. Validation therefore never changes training, ranks draw different noise, and every step can be
    reproduced.

    Args:
        network: network that predicts `target` from noisy images, level map and labels; see `asyncdiff.networks.DiT`.
        levels: distribution of the training level maps; AlongPath(AsyncPatch()) by default.
        weighting: weight of the squared velocity error of each patch; `Velocity` (1 everywhere) by default.
        process: noise process, alpha(t) and sigma(t); `RectifiedFlow` by default.
        target: quantity that the network predicts; `VelocityTarget` by default.
        sampler: default sampler of `generate`, `inpaint`, `predict` and the callbacks; `Sampler()` by default.
        codec: autoencoder between images and the latents of a latent diffusion model; None for a pixel-space model.
            Checkpoints record its arguments, not its weights.
        image_size: height and width of the images in pixels, or of the latents.
        optimizer: learning rate, weight decay and the like; see `OptimizerSettings`.
        label_dropout: probability that the label of a training image is replaced by "no label".
        level_values: number of equidistant values that training levels are rounded to, so that a network computes that
            many modulations per step rather than one per patch; noise is added at the rounded level. 0 = continuous.
        seed: seed of all randomness in training and evaluation, from 0 to 2**32 - 1.
        uncertainty_weight: weight of the uncertainty head's Gaussian negative log-likelihood in the loss. Without such
            a head it has no effect.
        compiled: compile the network for training and sampling; steps are faster after a slow first one (minutes for a
            large U-Net). Not saved in checkpoints.
        pretrained: checkpoint or export from whose weights training starts, the EMA weights if it has any; see
            `asyncdiff.training.warm_start`. Ignored when a run is resumed. Not saved in checkpoints.
        predict: which images `predict` generates; see `PredictSettings`.

    Example:
        >>> from asyncdiff.networks import DiT
        >>> model = AsyncDiffusion(DiT(channels=1, patch_size=2, dim=32, depth=1, heads=2, classes=10), image_size=8)
        >>> model.generate(seeds=[0, 1], labels=[3, 7]).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        network: nn.Module,
        levels: LevelSampler | None = None,
        weighting: Weighting | None = None,
        process: Process | None = None,
        target: Target | None = None,
        sampler: ImageSampler | None = None,
        codec: Codec | None = None,
        image_size: int = IMAGE_SIZE,
        optimizer: OptimizerSettings = DEFAULT_OPTIMIZER,
        label_dropout: float = 0.1,
        level_values: int = 256,
        seed: int = 0,
        uncertainty_weight: float = 0.01,
        compiled: bool = False,
        pretrained: str | None = None,
        predict: PredictSettings = DEFAULT_PREDICT,
    ):
        super().__init__(optimizer)
        self.model = DiffusionModel.assemble(network, process, target, sampler, codec, image_size)
        self.levels = levels or AlongPath()
        self.weighting = weighting or Velocity()
        self.label_dropout = label_dropout
        self.level_values = level_values
        self.seed = seed
        self.uncertainty_weight = uncertainty_weight
        self.compiled = compiled
        self.pretrained = pretrained
        self.predict = predict
        names = [f"{stage}/{name}" for stage in ("val", "test") for name in HELD_OUT_ERRORS]
        self.means = nn.ModuleDict({name: ImageMean() for name in names})
        self.averaged: dict[str, Any] = {}  # EMA weights of a loaded checkpoint, for the EMA callback to take over
        self._range_is_checked = False
        self._stream: int | None = None  # seed of the randomness in the current training step
        self.latents = {}
        check_ranges(
            label_dropout=label_dropout,
            level_values=level_values,
            uncertainty_weight=uncertainty_weight,
            seed=seed,
        )
        check_training(self.model, self.levels, self.weighting, level_values)
        check_sampling(self.model)
        if compiled:  # in place, so that the names of the weights and the object config stay the same
            network.compile()

    # Training

    def configure_model(self) -> None:
        """Shard the network if the strategy is fully_shard.

        Raises:
            ValueError: another strategy shards the network, or there is no compiler for a compiled one.
        """
        if self.compiled:
            check_compiler()
        if attached_trainer(self) is not None:
            check_strategy(self.trainer.strategy, str(self.trainer.precision))
            keep_gradients_in_buckets(self.trainer)
            leave_inputs_of_ddp(self.trainer)
        if self.device_mesh is not None:
            rounds = str(self.trainer.precision) == "bf16-mixed"
            shard(self.network, self.device_mesh["data_parallel"], block_dtype=torch.bfloat16 if rounds else None)

    def on_fit_start(self) -> None:
        """Check early that the model fits the data and can be saved; load the weights of `pretrained`."""
        self.recipe()  # raises an error now rather than at the first checkpoint
        data = getattr(self.trainer, "datamodule", None)
        compatibility.check_data(self)
        check_batches(self.model, data)
        if self.codec is not None:  # load it now, so that a missing file is noticed before the first sample grid
            check_codec(self.model, self.codec.channels)
            check_same_codec(self.codec, getattr(data, "codec", None) or {})
        own = None if self.codec is None else self.codec.fingerprint()
        compatibility.record_latents(self, here=getattr(data, "codec", None) or own)
        if self.pretrained is not None and self.trainer.ckpt_path is None:
            load_pretrained(self.model, self.pretrained, self.labels)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed all randomness of this step, dropout included."""
        # The key identifies the position in the data, which resuming does not change; some data modules have no keys.
        position = [int(batch["key"][0])] if "key" in batch else [self.current_epoch, batch_idx, self.global_rank]
        self._stream = counter_key(self.seed, TRAINING, *position)
        torch.manual_seed(self._stream)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return the loss, and for callbacks the level and the error of every patch."""
        x = self._images(batch)
        draw = self._sample_levels(len(x))
        eps = normal(x.shape, device=x.device)
        result = training_loss(self.denoiser, x, eps, draw, self.weighting, self._training_labels(batch))
        loss = result.per_image.mean()
        self.log("train/loss", loss)  # with prog_bar=True Lightning would wait for the GPU at every batch
        if result.uncertainty is not None:
            uncertainty = result.uncertainty.mean()
            self.log("train/uncertainty_loss", uncertainty)
            loss = loss + self.uncertainty_weight * uncertainty
        info = {name: batch.get(name) for name in ("index", "key", "label")} | {"stream": self._stream}
        loss = self.guard.watch(loss, **info, loss_per_image=result.per_image.detach(), levels=result.t)
        return {"loss": loss, "t": result.t, "error": result.error.detach()}

    def on_validation_start(self) -> None:
        compatibility.check_data(self)

    def on_test_start(self) -> None:
        compatibility.check_data(self)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log the loss on held-out images, and the gap between constant and heterogeneous level maps."""
        self._evaluate(batch, "val")

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log the same values as `validation_step`, on the test split."""
        self._evaluate(batch, "test")

    # Checkpoints

    def recipe(self) -> dict[str, Any]:
        """Return the object config that checkpoints record; raise TypeError if an argument cannot be described."""
        described: dict[str, Any] = object_config.describe(self)
        # These belong to one run or machine, not to the model; a subclass may lack them.
        predict = object_config.describe(replace(self.predict, task=None))
        of_a_run = {"predict": predict, "compiled": False, "pretrained": None}
        arguments = described["init_args"]
        arguments |= {name: value for name, value in of_a_run.items() if name in arguments}
        return described

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the model's object config, the precision, the fingerprints of codec and classes, and the EMA weights."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["recipe"] = self.recipe()
        if (trainer := attached_trainer(self)) is not None:
            checkpoint["precision"] = str(trainer.precision)
        if latents := self.latents.get("here") or self.latents.get("there"):
            checkpoint["latents"] = latents
        if self.classes and self.labels:
            checkpoint["labels"] = self.labels
        # Lightning skips the callbacks' own hooks for weights-only checkpoints, which are the ones that people share.
        for callback in getattr(trainer, "callbacks", ()):
            if hasattr(callback, "add_average"):
                callback.add_average(checkpoint, self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise ValueError if the checkpoint belongs to another model; store its EMA weights for the EMA callback."""
        compatibility.check_checkpoint(self, checkpoint)
        super().on_load_checkpoint(checkpoint)
        correct_epoch(checkpoint)
        trainer = attached_trainer(self)
        if trainer is not None and trainer.state.fn != TrainerFn.FITTING:
            # Log metrics at the checkpoint's step and epoch; Lightning would log them at step 0 of epoch 0.
            set_logged_step(trainer, int(checkpoint.get("global_step", 0)))
            set_epoch(trainer, int(checkpoint.get("epoch", 0)))
        self.averaged = checkpoint.get("ema", {})

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path,
        map_location: torch.device | str = "cpu",
        *,
        weights: Literal["auto", "ema", "raw"] = "auto",
        allow: Sequence[str] = ("asyncdiff",),
    ) -> "AsyncDiffusion":
        """Load a model from a checkpoint, in evaluation mode and ready for sampling.

        Args:
            checkpoint_path: a .ckpt file of a run, or the folder of an export.
            map_location: device to load the model to.
            weights: "auto" selects the EMA weights if there are any (the first EMA if several), "ema" requires them,
                "raw" selects the raw weights (last step).
            allow: packages whose classes may be imported to rebuild the model.

        Returns:
            The model on `map_location`.
        """
        checkpoint = read_checkpoint(checkpoint_path, map_location)
        state, _ = choose_weights(checkpoint, weights, checkpoint_path)
        with limited_to(state, checkpoint_path):
            model = object_config.build(checkpoint["recipe"], allow)
        if not isinstance(model, cls):
            raise ValueError(
                f"checkpoint_path {checkpoint_path} contains a {type(model).__name__}, not a {cls.__name__}: load it "
                f"with {type(model).__name__}.load_from_checkpoint"
            )
        compatibility.check_weights(model.state_dict(keep_vars=True), state, checkpoint_path)
        model.load_state_dict(state)
        compatibility.record_latents(model, here=checkpoint.get("latents"))
        model.labels = checkpoint.get("labels")
        return model.to(map_location).eval()

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | Path,
        revision: str | None = None,
        *,
        map_location: torch.device | str = "cpu",
        allow: Sequence[str] = ("asyncdiff",),
    ) -> "AsyncDiffusion":
        """Load an exported model, in evaluation mode and ready for sampling; see docs/sharing.md.

        Args:
            path_or_repo: folder written by `python -m asyncdiff export`, or a repository OWNER/NAME on the Hugging Face
                Hub with such files.
            revision: branch, tag or commit of the repository.
            map_location: device to load the model to.
            allow: packages whose classes may be imported to rebuild the model.

        Returns:
            The model on `map_location`.
        """
        return cls.load_from_checkpoint(locate_export(path_or_repo, revision), map_location, allow=allow)

    # Helpers

    def _sample_levels(self, batch: int, generator: Generators = None) -> LevelDraw:
        grid = self.denoiser.grid(self.shape[1:])
        draw = self.levels(batch, grid, generator=generator, device=self.device)
        return draw.quantized(self.level_values, self.levels.t_min) if self.level_values else draw

    def _images(self, batch: dict[str, Tensor]) -> Image:
        x = batch["image"]
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(
                f"images must have the model's shape (channels, height, width) {self.shape}, got {tuple(x.shape[1:])}: "
                "set image_size and network.channels"
            )
        if not self._range_is_checked:  # once, because a check in every step would wait for the GPU
            check_pixels("images of the data", x)
            self._range_is_checked = True
        return x

    def _training_labels(self, batch: dict[str, Tensor]) -> Tensor | None:
        if not self.classes:
            return None
        label = batch["label"]
        dropped = uniform(label.shape, device=label.device) < self.label_dropout
        return label.masked_fill(dropped, self.classes)

    def _evaluate(self, batch: dict[str, Tensor], stage: str) -> None:
        x, label = self._images(batch), batch["label"] if self.classes else None
        if "index" not in batch:
            raise ValueError(
                f"batches must contain 'index', the positions of the images in the split, got the keys {list(batch)}: "
                "add it in the data module"
            )
        if not len(x):  # none of the batch's files could be read
            return
        generators = per_image(counter_key(self.seed, EVALUATION, i) for i in batch["index"].tolist())
        draw = self._sample_levels(len(x), generators)
        values = held_out_errors(self.denoiser, x, draw, self.weighting, label, generators)
        for name, value in values.items():
            mean = cast(ImageMean, self.means[f"{stage}/{name}"])
            mean.update(value)
            self.log(f"{stage}/{name}", mean)
