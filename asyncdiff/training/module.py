"""AsyncDiffusion: what is trained, as a LightningModule. It owns the network and nothing else."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Bool, Float
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from asyncdiff.checkpoints import choose, object_config, read_checkpoint
from asyncdiff.checkpoints.export.hub import located
from asyncdiff.denoising.denoiser import Denoiser
from asyncdiff.denoising.loss import training_loss
from asyncdiff.denoising.targets import Target
from asyncdiff.denoising.validation import HELD_OUT_ERRORS, held_out_errors
from asyncdiff.denoising.weightings import Velocity, Weighting
from asyncdiff.latents import Codec, check_same
from asyncdiff.noise.levels import AlongPath, LevelDraw, LevelSampler
from asyncdiff.noise.processes import Process, RectifiedFlow
from asyncdiff.randomness import Generators, counter_key, normal, per_image, uniform
from asyncdiff.sampling import batched
from asyncdiff.sampling.samplers import ImageSampler, Sampler
from asyncdiff.shapes import Image, Latents
from asyncdiff.tasks import Task
from asyncdiff.training import compatibility
from asyncdiff.training.argument_checks import check_codec, check_labels, check_settings
from asyncdiff.training.fsdp2 import check_strategy, shard
from asyncdiff.training.image_mean import ImageMean
from asyncdiff.training.optimization import OptimizerMixin
from asyncdiff.training.predict_mixin import PredictMixin, check_predictions
from asyncdiff.training.warm_start import load_pretrained

TRAINING, EVALUATION = 0, 1  # first counter of the random streams, so that they never meet


class AsyncDiffusion(PredictMixin, OptimizerMixin):
    """An objective over random level maps, and the sampler that draws images with what it learns.

    All randomness of a training step is a function of the seed and of the key of the batch's first sample, which the
    data module computes from (seed, epoch, position); that of an evaluation is a function of the seed and the index of
    each image. So validating never changes training, processes differ, and any step can be computed again.

    Args:
        network: predicts the velocity or another `target`, see `asyncdiff.networks.DiT`.
        levels: distribution over level maps in training; AlongPath(AsyncPatch()) by default.
        weighting: weight on the squared error of the velocity; 1 by default.
        process: noise process; the rectified flow by default.
        target: what the network's output stands for; the velocity by default.
        sampler: how images are drawn, in callbacks, `generate`, `inpaint` and `predict`.
        codec: what turns the latents that the model is of into pictures; a model of pixels needs none. A checkpoint
            names it, and has none of its weights.
        image_size: side of the images in pixels, or of the latents.
        learning_rate: of AdamW, after the warm-up.
        betas: decay rates of AdamW's averages of the gradient and of its square.
        weight_decay: decoupled weight decay of AdamW, times the learning rate.
        warmup_steps: steps over which the learning rate grows linearly from 0.
        stop_after_bad_steps: a step whose loss or gradient is NaN or infinite is skipped; so many in a row end the run,
            with a file of what was in the last one. 0 never ends it.
        label_dropout: probability that a training image's label is replaced by "no label".
        level_values: training levels are rounded to this many equidistant values, so that a network computes that many
            modulations a step rather than one per patch; the noise is added at the rounded level. 0 = continuous.
        seed: of all randomness in training and evaluation.
        uncertainty_weight: weight in the loss of the uncertainty head's Gaussian negative log-likelihood, where the
            network has such a head.
        compiled: compile the network, in training and when images are drawn: faster steps after a slow first one
            (minutes for a large U-Net). It is no part of a checkpoint.
        pretrained: a checkpoint of ours whose weights training starts from, averaged ones where it has any; see
            `asyncdiff.training.warm_start`. A run that is continued has its own. It is no part of a checkpoint.
        task: what `predict` draws; whole images by default. It is no part of a checkpoint.
        predict_count: images that `predict` draws, with seeds 0, 1, ...; so many of every photo, if the task has any.
        predict_seeds: their seeds, in place of 0 .. predict_count - 1.
        predict_labels: their classes, in turn over the photos or else over the seeds; by default all classes in turn
            for whole images, none for photos. An empty list tells none.
        predict_batch_size: images drawn together.
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
        image_size: int = 32,
        learning_rate: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        warmup_steps: int = 1000,
        stop_after_bad_steps: int = 10,
        label_dropout: float = 0.1,
        level_values: int = 256,
        seed: int = 0,
        uncertainty_weight: float = 0.01,
        compiled: bool = False,
        pretrained: str | None = None,
        task: Task | None = None,
        predict_count: int = 64,
        predict_seeds: Sequence[int] | None = None,
        predict_labels: Sequence[int] | None = None,
        predict_batch_size: int = 64,
    ):
        super().__init__(
            learning_rate=learning_rate,
            betas=betas,
            weight_decay=weight_decay,
            warmup_steps=warmup_steps,
            stop_after_bad_steps=stop_after_bad_steps,
        )
        self.denoiser = Denoiser(network, process or RectifiedFlow(), target)
        self.levels = levels or AlongPath()
        self.weighting = weighting or Velocity()
        self.sampler: ImageSampler = sampler or Sampler()
        self.codec = codec
        self.image_size = image_size
        self.label_dropout = label_dropout
        self.level_values = level_values
        self.seed = seed
        self.uncertainty_weight = uncertainty_weight
        self.compiled = compiled
        self.pretrained = pretrained
        self.task = task
        self.predict_count = predict_count
        self.predict_seeds = predict_seeds
        self.predict_labels = predict_labels
        self.predict_batch_size = predict_batch_size
        names = [f"{stage}/{name}" for stage in ("val", "test") for name in HELD_OUT_ERRORS]
        self.means = nn.ModuleDict({name: ImageMean() for name in names})
        self.averaged: dict[str, Any] = {}  # the averages found in a checkpoint, for the EMA callback to take over
        self._stream: int | None = None  # seed of the draws of the present step
        self.latents: dict[str, Any] = {}  # identities of their codec as far as known, see `compatibility.know_latents`
        check_settings(self)
        check_predictions(self)
        if compiled:  # in place: the names of the weights stay, and so does what a checkpoint says of the network
            network.compile()

    @property
    def network(self) -> nn.Module:
        """The network, which predicts the target."""
        return self.denoiser.network

    @property
    def process(self) -> Process:
        """The noise process."""
        return self.denoiser.process

    @property
    def target(self) -> Target:
        """What the network's output stands for."""
        return self.denoiser.target

    @property
    def classes(self) -> int:
        """Number of labels that the network knows, 0 for an unconditional one."""
        return int(getattr(self.network, "classes", 0))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of what it draws: images, or latents."""
        return int(getattr(self.network, "channels", 3)), self.image_size, self.image_size

    # Using what was learned

    def generate(
        self,
        seeds: Sequence[int],
        labels: Sequence[int] | None = None,
        *,
        sampler: ImageSampler | None = None,
        batch_size: int = 64,
    ) -> Image:
        """One image per seed, values in about [-1, 1]; image i depends on seed i (and label i) only.

        A model of latents draws latents: `decode` makes pictures of them.
        """
        check_labels(labels, self.classes)
        with self.sampling_context():
            return batched.generate(
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
        """`image` with the pixels where `known` is False generated; the known ones come back bit for bit.

        A model of latents completes latents; `asyncdiff.tasks.Inpaint` takes photos to them and back.

        Args:
            image: in [-1, 1]; (c, h, w), completed once per seed, or (b, c, h, w).
            known: bool, True = known; (h, w), or (b, h, w).
            seeds: one per result; 0, 1, ... by default.
            labels: a class per result, None for none.
            sampler: the module's own by default.
            batch_size: images that go through the network together.
        """
        check_labels(labels, self.classes)
        with self.sampling_context():
            return batched.inpaint(
                self.denoiser,
                sampler or self.sampler,
                image=image,
                known=known,
                seeds=seeds,
                labels=labels,
                batch_size=batch_size,
            )

    def encode(self, images: Image) -> Latents:
        """What the model works on, of images (b, c, h, w) in [-1, 1]: latents where it has a codec, else the images."""
        return images if self.codec is None else self.codec.to(self.device).encode(images)

    def decode(self, x: Latents) -> Image:
        """Pictures of what the model draws, about in [-1, 1]: through its codec; without one, x as it is."""
        return x if self.codec is None else self.codec.to(self.device).decode(x)

    def sampling_context(self) -> Any:
        """The context that drawing images runs in: the trainer's precision inside a run, float32 otherwise."""
        return self._trainer.precision_plugin.forward_context() if self._trainer is not None else nullcontext()

    # Training

    def configure_model(self) -> None:
        """Share the network out under fully_shard; ValueError under other strategies that do not copy it."""
        if self._trainer is not None:
            check_strategy(self.trainer.strategy, str(self.trainer.precision))
        if self._device_mesh is not None:
            shard(self.network, self._device_mesh["data_parallel"])

    def on_fit_start(self) -> None:
        """Find out now, not at the first checkpoint, whether the model fits the data and can be described; start."""
        object_config.describe(self)
        data = getattr(self.trainer, "datamodule", None)
        compatibility.check_data(self)
        if self.codec is not None:  # read now: a missing file is not to be missed by the first picture
            check_codec(self, self.codec.channels)
            check_same(self.codec, getattr(data, "codec", None) or {})
        own = None if self.codec is None else self.codec.identity()
        compatibility.know_latents(self, here=getattr(data, "codec", None) or own)
        if self.pretrained is not None and self.trainer.ckpt_path is None:
            load_pretrained(self, self.pretrained)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed every draw of this step, dropout included."""
        # The key is the place in the data, which no interruption changes; foreign data modules may have none.
        place = [int(batch["key"][0])] if "key" in batch else [self.current_epoch, batch_idx, self.global_rank]
        self._stream = counter_key(self.seed, TRAINING, *place)
        torch.manual_seed(self._stream)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """The loss, with the levels and errors of every patch for whoever wants to watch them."""
        x = self._images(batch)
        draw = self._draw(len(x))
        eps = normal(x.shape, device=x.device)
        result = training_loss(self.denoiser, x, eps, draw, self.weighting, self._training_labels(batch))
        loss = result.per_image.mean()
        self.log("train/loss", loss, prog_bar=True)
        if result.uncertainty is not None:
            uncertainty = result.uncertainty.mean()
            self.log("train/uncertainty_loss", uncertainty)
            loss = loss + self.uncertainty_weight * uncertainty
        facts = {name: batch.get(name) for name in ("index", "key", "label")} | {"stream": self._stream}
        loss = self.guard.watch(loss, **facts, loss_per_image=result.per_image.detach(), levels=result.t)
        return {"loss": loss, "t": result.t, "error": result.error.detach()}

    def on_validation_start(self) -> None:
        """Refuse data of other classes."""
        compatibility.check_data(self)

    def on_test_start(self) -> None:
        """Refuse data of other classes."""
        compatibility.check_data(self)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log the objective and the gap between constant and heterogeneous maps on held-out images."""
        self._evaluate(batch, "val")

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """What `validation_step` logs, on the test split."""
        self._evaluate(batch, "test")

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add how to rebuild the model, as plain containers, and the averaged weights of the EMA callbacks."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["recipe"] = object_config.describe(self)
        # Wishes of the day, and of this machine.
        checkpoint["recipe"]["init_args"] |= {"task": None, "compiled": False, "pretrained": None}
        if latents := self.latents.get("here") or self.latents.get("there"):
            checkpoint["latents"] = latents
        # Their own hooks are passed over for files of weights only, which are the ones that people share.
        for callback in self._trainer.callbacks if self._trainer is not None else ():  # type: ignore[attr-defined]
            if hasattr(callback, "add_average"):
                callback.add_average(checkpoint, self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the weights of another model; keep the averages for the callback that continues or uses them."""
        compatibility.check_checkpoint(self, checkpoint)
        super().on_load_checkpoint(checkpoint)
        if self._trainer is not None and self.trainer.state.fn in (TrainerFn.VALIDATING, TrainerFn.TESTING):
            # The step that numbers are logged at: the checkpoint's, where Lightning would say 0.
            self.trainer.fit_loop.epoch_loop._batches_that_stepped = int(checkpoint.get("global_step", 0))
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
        """The model of a checkpoint, ready to draw images.

        Args:
            checkpoint_path: a .ckpt file of a run, or an exported folder.
            map_location: device to load to.
            weights: "auto" takes the averaged weights where the run kept any (the first average if several), "ema"
                insists on them, "raw" takes those of the last step.
            allow: packages whose classes may be imported to rebuild the model.
        """
        checkpoint = read_checkpoint(checkpoint_path, map_location)
        state, _ = choose(checkpoint, weights, checkpoint_path)
        model = object_config.build(checkpoint["recipe"], allow)
        if not isinstance(model, cls):
            raise ValueError(f"{checkpoint_path} holds a {type(model).__name__}, not a {cls.__name__}")
        compatibility.check_weights(model.state_dict(), state, checkpoint_path)
        model.load_state_dict(state)
        compatibility.know_latents(model, here=checkpoint.get("latents"))
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
        """The model of an export, ready to draw images; see docs/sharing.md.

        Args:
            path_or_repo: a folder that `python -m asyncdiff export` wrote, or a repository of the Hugging Face hub with
                its files, OWNER/NAME.
            revision: branch, tag or commit of a repository.
            map_location: device to load to.
            allow: packages whose classes may be imported to rebuild the model.
        """
        return cls.load_from_checkpoint(located(path_or_repo, revision), map_location, allow=allow)

    # Parts

    def _draw(self, batch: int, generator: Generators = None) -> LevelDraw:
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
            raise ValueError(f"batches must hold 'index', each image's place in the split, got {list(batch)}: add it")
        if not len(x):  # no file of the batch could be read
            return
        generators = per_image(counter_key(self.seed, EVALUATION, i) for i in batch["index"].tolist())
        draw = self._draw(len(x), generators)
        values = held_out_errors(self.denoiser, x, draw, self.weighting, label, generators)
        for name, value in values.items():
            mean = cast(ImageMean, self.means[f"{stage}/{name}"])
            mean.update(value)
            self.log(f"{stage}/{name}", mean)
