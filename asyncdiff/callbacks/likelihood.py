"""Evaluate bits per dimension of held-out images along several noise paths, and the path gap, during a run."""

from collections.abc import Mapping
from functools import partial

from lightning.pytorch import Trainer

from asyncdiff.callbacks.held_out_metric import HeldOutMetric
from asyncdiff.callbacks.tensorboard import log_figure
from asyncdiff.callbacks.validation_images import evaluation_images
from asyncdiff.checks import at_least
from asyncdiff.denoising.likelihood import CategoricalDecoder, Decoder
from asyncdiff.evaluation.held_out_images import evenly_spaced
from asyncdiff.evaluation.likelihood_by_path import STANDARD_PATHS, PathLikelihoodEvaluator, check_labels
from asyncdiff.noise.masks import Mask
from asyncdiff.noise.paths import Path as NoisePath
from asyncdiff.noise.progress_samplers import ProgressSampler
from asyncdiff.training.lightning_module import AsyncDiffusion

MAX_POINTS = 100_000  # evaluations of the network per image


class Likelihood(HeldOutMetric):
    """Logs bits_per_dim/PATH (nats_per_dim/PATH for latents) of held-out images, and bits_per_dim/path_gap.

    For a perfect model the bound is tight on every path. The path gap quantifies how far the network is from one
    consistent joint score: it is the difference between the loosest and the tightest path, which are selected on one
    half of the images and compared on the other. bits_per_dim_parts/PATH/* are the terms of the bound and
    bits_per_dim_by_level/PATH/* the diffusion term by noise level; the figure images/bits shows where in the image they
    arise. Uses the EMA weights if the run has any, full precision, and images spread evenly over the split.

    Args:
        paths: path families by name; synchronous, AsyncPatch, an overlapping wavefront and strict raster by default.
        count: number of held-out images; None means all of them.
        points: number of network evaluations per image and path.
        decoder: reconstruction term at the lowest level; None means a `CategoricalDecoder` with the data module's
            number of values. Use `GaussianDecoder` for latents.
        mask: known pixels; if set, -log p(unknown | known) is bounded.
        labels: condition the network on the class labels of the images, if it has classes.
        progress_sampler: distribution of the progress s on the paths; importance sampling by default.
        t_min: lowest level of the paths; None means the one that suits the decoder.
        every_n_steps: number of optimizer steps between evaluations; 0 evaluates only at the end of training, and in
            `validate` and `test`.
        batch_size: number of images that go through the network together.
        name: prefix of the tags, to distinguish several callbacks.
    """

    def __init__(
        self,
        paths: dict[str, NoisePath] | None = None,
        count: int | None = None,
        points: int = 64,
        decoder: Decoder | None = None,
        mask: Mask | None = None,
        labels: bool = True,
        progress_sampler: ProgressSampler | None = None,
        t_min: float | None = None,
        every_n_steps: int = 0,
        batch_size: int = 128,
        name: str = "",
    ):
        if count is not None:
            at_least("count", count, 2, "a standard error needs two images")
        at_least("points", points, 2, "use 64, for example", MAX_POINTS)
        if t_min is not None and not 0 < t_min < 1:
            raise ValueError(f"t_min must lie in (0, 1), got {t_min}: use 0.002 for 8-bit pixels, or omit it")
        super().__init__(name, every_n_steps, count, batch_size)
        self.paths: Mapping[str, NoisePath] = paths or STANDARD_PATHS
        self.points = points
        self.decoder = decoder
        self.mask = mask
        self.labels = labels
        self.progress_sampler = progress_sampler
        self.t_min = t_min

    def on_fit_start(self, trainer: Trainer, pl_module: AsyncDiffusion) -> None:  # type: ignore[override]
        """Check before training that the arguments fit the data and the model."""
        self._build_evaluator(trainer, pl_module)

    def compute_metrics(self, trainer: Trainer, module: AsyncDiffusion) -> dict[str, float]:
        """Return the bounds per dimension and the path gap."""
        bounds = self._build_evaluator(trainer, module)
        evaluate = partial(bounds.evaluate, module.denoiser)
        rows = self.evaluate_images(trainer, module, evaluate, labels=self.labels)
        summary = bounds.summarize(rows, module.denoiser.grid(module.shape[1:]))
        if trainer.is_global_zero:
            from asyncdiff.evaluation.figures.bits_figure import bits_figure  # slow import: matplotlib

            log_figure(trainer, self.figure_name("bits"), bits_figure(summary))
        self.details = self.tagged(summary.details())
        return self.tagged(summary.scalars())

    def _build_evaluator(self, trainer: Trainer, module: AsyncDiffusion) -> PathLikelihoodEvaluator:
        """Build the evaluator and check it against the data and the model."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        decoder = self.decoder or CategoricalDecoder(int(getattr(data, "values", 256)))
        bounds = PathLikelihoodEvaluator(self.paths, self.points, decoder, self.mask, self.progress_sampler, self.t_min)
        classes = getattr(data, "classes", None)
        check_labels(module.model, classes, conditioned=self.labels, label_dropout=module.label_dropout)
        images = evaluation_images(trainer)
        bounds.check(module.denoiser, images.__getitems__(evenly_spaced(len(images), 4))["image"])
        return bounds
