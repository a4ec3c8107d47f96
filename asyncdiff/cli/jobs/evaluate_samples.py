"""Compare generated with real images, and write a table, a result card and a contact sheet."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from asyncdiff.cli.commands.evaluate import Run
from asyncdiff.cli.commands.evaluate_samples import COUNT
from asyncdiff.cli.commands.shared.options import choose_device, with_arguments
from asyncdiff.cli.jobs.distributed import Ranks, ranks
from asyncdiff.cli.jobs.evaluated_model import EvaluatedModel, check_shape, load_data
from asyncdiff.cli.jobs.extract_features import extract, prepare, reference_for
from asyncdiff.cli.jobs.image_sources import (
    GeneratedImages,
    ImageSource,
    RealImages,
    StoredImages,
    check_same_shape,
    open_images,
)
from asyncdiff.cli.jobs.write_results import write
from asyncdiff.evaluation.features.base import Features
from asyncdiff.evaluation.features.inception import InceptionFeatures
from asyncdiff.evaluation.reference_statistics import Reference
from asyncdiff.evaluation.result_card import software
from asyncdiff.evaluation.sample_report import SampleReport, compute_metrics, metrics_needing_image_features
from asyncdiff.model import DiffusionModel
from asyncdiff.precision import full_float32
from asyncdiff.sampling.guidance import ClassifierFree
from asyncdiff.sampling.samplers import ImageSampler
from asyncdiff.tasks.contact_sheet import MAX_SHEET_IMAGES


@dataclass(frozen=True)
class Evaluation:
    """Objects shared by the parts of an evaluation.

    Attributes:
        options: parsed options of the command line.
        data: data module of the run.
        loaded: model of the run; None if neither samples nor decoding are needed (--images with data in pixels).
        features: prepared feature extractor.
        ranks: processes that share the work.
    """

    options: Any
    data: Any
    loaded: EvaluatedModel | None
    features: Features
    ranks: Ranks

    @classmethod
    def prepare(cls, run: Run, processes: Ranks) -> "Evaluation":
        """Load the data of a run, and its model if necessary, and prepare the features."""
        options, data, loaded = run.options, load_data(run), None
        if options.images is None or getattr(data, "codec", None):
            loaded = EvaluatedModel.load(run, data, processes.device)
            check_shape(loaded.model, data.dataset(options.split).plain().__getitems__([0])["image"])
        decode = _identity if loaded is None else loaded.decode_exactly
        features = prepare((options.features or InceptionFeatures()).to(processes.device), data, decode, options)
        return cls(options, data, loaded, features, processes)

    def real_images(self, split: str, count: int | None) -> RealImages:
        """Return a source of `count` real images from a split; None for all."""
        codec = None if self.loaded is None else self.loaded.model.codec
        decode = _identity if self.loaded is None else self.loaded.decode_exactly
        size = self.options.batch_size
        return RealImages(self.data, split, count, decode=decode, codec=codec, batch_size=size)

    def source(self) -> GeneratedImages | StoredImages:
        """Return the source of the images to evaluate: the model, or the folder or file given by --images."""
        options, size = self.options, self.options.batch_size
        if self.loaded is None or options.images is not None:
            codec = None if self.loaded is None else self.loaded.model.codec
            channels = self.data.channels if codec is None else codec.pixel_channels
            return open_images(options.images, options.count, channels=channels, batch_size=size)
        model, count = self.loaded.model, COUNT if options.count is None else options.count
        sampler = _sampler(model, options)
        return GeneratedImages(model, sampler, count, first_seed=options.seed, labels=options.labels, batch_size=size)

    def report(self, metrics: Sequence[str], reference: Reference, rows: Tensor) -> SampleReport:
        """Compute metrics of images from their features."""
        features, device = self.features, self.ranks.device
        predict: Any = getattr(features, "logits_of", None)
        with full_float32(device):
            logits = predict(rows.to(device)).cpu() if "inception_score" in metrics and predict else None
        seed = self.options.seed
        return compute_metrics(metrics, features.name, reference, rows, logits=logits, seed=seed, device=device)

    def protocol(self, source: ImageSource, reference: Reference, report: SampleReport) -> dict[str, Any]:
        """Return the protocol of the result card."""
        options = self.options
        if self.loaded is None or options.images is not None:
            shared = {"checkpoint": str(options.images), "seed": options.seed, **software(options.device)}
        else:
            shared = self.loaded.protocol()
        external = "external" in reference.fingerprint
        real = dict(reference.fingerprint) if external else {**reference.fingerprint["images"], "read": reference.count}
        omitted = {"data", "split"}  # described in more detail by the reference
        return {
            "measurement": "samples",
            **{key: value for key, value in shared.items() if key not in omitted},
            "features": self.features.fingerprint(),
            "reference": real,
            "samples": source.fingerprint(),
            "settings": report.settings,
        }


def evaluate(run: Run, metrics: Sequence[str]) -> None:
    """Evaluate what the options of `evaluate --samples` ask for, print the table, and write the files."""
    options = run.options
    choose_device(options)
    with ranks(options.device) as processes:
        evaluation = Evaluation.prepare(run, processes)
        features, source = evaluation.features, evaluation.source()
        real = evaluation.real_images(options.split, options.reference_count)
        check_same_shape(source, real)
        reference, reference_file = reference_for(features, real, processes, file=options.reference)
        _check_reference(reference, metrics)
        floor = None
        if options.floor != "none":
            floor, _ = reference_for(features, evaluation.real_images(options.floor, source.count), processes)
        extracted = extract(features, source, processes, keep_images=MAX_SHEET_IMAGES)
        if reference is None or not processes.first:  # only the first process has the features of all images
            return
        generated = evaluation.report(metrics, reference, extracted.features)
        rows = {"folder" if options.images else "generated": (len(extracted.features), generated)}
        if floor is not None and floor.features is not None:
            compared = [metric for metric in metrics if metric != "inception_score"]  # it uses no real images
            report = evaluation.report(compared, reference, floor.features)
            rows[f"real, {options.floor}"] = (len(floor.features), report)
        protocol = evaluation.protocol(source, reference, generated)
        print(f"reference: {reference_file}")
        write(run.output(), options.name, rows, protocol, extracted.first_images, source)


def _sampler(model: DiffusionModel, options: Any) -> ImageSampler:
    """Return --sampler or the model's own sampler, with --steps and --guidance applied."""
    sampler: ImageSampler = options.sampler or model.sampler
    changes: dict[str, Any] = {} if options.steps is None else {"steps": options.steps}
    if options.guidance is not None:
        if not (options.labels and model.classes):
            raise ValueError(
                f"--guidance needs a class-conditional model and --labels true, got {options.guidance}: drop --guidance"
            )
        others = [rule for rule in sampler.guidance if not isinstance(rule, ClassifierFree)]
        changes["guidance"] = [*others, ClassifierFree(options.guidance)]
    return with_arguments(sampler, **changes) if changes else sampler


def _check_reference(reference: Reference | None, metrics: Sequence[str]) -> None:
    """Raise ValueError, before anything is sampled, if the reference lacks the features that the metrics need."""
    if reference is not None and reference.features is None and (needed := metrics_needing_image_features(metrics)):
        raise ValueError(
            f"--metrics must be frechet or inception_score with external statistics, got {', '.join(needed)}: "
            "these compare features of single images"
        )


def _identity(images: Tensor) -> Tensor:
    return images
