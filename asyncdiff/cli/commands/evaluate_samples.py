"""`python -m asyncdiff evaluate RUN --samples`: evaluate sample quality, and record the protocol."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from asyncdiff.checks import at_least
from asyncdiff.cli.commands.evaluate import Run, add_run_arguments, check_shape
from asyncdiff.cli.commands.shared.command_parser import command_parser
from asyncdiff.cli.commands.shared.distributed import Ranks, ranks
from asyncdiff.cli.commands.shared.extract_features import extract, prepare, reference_for
from asyncdiff.cli.commands.shared.image_sources import GeneratedImages, ImageFiles, ImageSource, RealImages
from asyncdiff.cli.commands.shared.options import SAMPLER, parse_names, with_arguments
from asyncdiff.cli.commands.shared.write_results import write
from asyncdiff.evaluation.features.base import Features
from asyncdiff.evaluation.features.inception import InceptionFeatures
from asyncdiff.evaluation.likelihood_by_path import check_labels
from asyncdiff.evaluation.reference_statistics import Reference
from asyncdiff.evaluation.result_card import software
from asyncdiff.evaluation.sample_report import METRICS, SampleReport, compute_metrics, metrics_needing_image_features
from asyncdiff.sampling.guidance import ClassifierFree
from asyncdiff.sampling.samplers import ImageSampler
from asyncdiff.tasks.contact_sheet import MAX_SHEET_IMAGES

DESCRIPTION = """Compare generated with real images: Fréchet distance (FID with Inception features), KID, Inception
score, precision and recall, density and coverage.

Image i is sampled with seed + i, cycling through the class labels. Under torchrun or SLURM, all processes share the
work; the results do not depend on their number. With --images, a folder is evaluated instead of the model. Statistics
of the real images are cached, see --reference."""
COUNT = 50_000


@dataclass(frozen=True)
class Evaluation:
    """Objects shared by the parts of an evaluation.

    Attributes:
        options: parsed options of the command line.
        run: run, or exported folder, to evaluate.
        data: data module of the run.
        model: model of the run; None if neither samples nor decoding are needed (--images with data in pixels).
        features: prepared feature extractor.
        ranks: processes that share the work.
    """

    options: Any
    run: Run
    data: Any
    model: Any | None
    features: Features
    ranks: Ranks

    def real_images(self, split: str, count: int | None) -> RealImages:
        """Return a source of `count` real images from a split; None for all."""
        codec = None if self.model is None else self.model.codec
        decode = _identity if self.model is None else self.model.decode
        size = self.options.batch_size
        return RealImages(self.data, split, count, decode=decode, codec=codec, batch_size=size)


def main(argv: Sequence[str]) -> None:
    """Parse the arguments, evaluate, print the table, and write it with a result card and a contact sheet."""
    parser = _parser()
    options = parser.instantiate(parser.parse_args(argv))
    metrics = _check(options)
    run = Run(options)
    output = run.output()
    with ranks(options.device) as processes:
        evaluation = _prepare(options, run, processes)
        features, source = evaluation.features, _source(evaluation)
        real = evaluation.real_images(options.split, options.reference_count)
        reference, reference_file = reference_for(features, real, processes, file=options.reference)
        _check_reference(reference, metrics)
        floor = None
        if options.floor != "none":
            floor, _ = reference_for(features, evaluation.real_images(options.floor, source.count), processes)
        extracted = extract(features, source, processes, keep_images=MAX_SHEET_IMAGES)
        if reference is None or not processes.first:  # only the first process has the features of all images
            return
        generated = _report(evaluation, metrics, reference, extracted.features)
        rows = {"folder" if options.images else "generated": (len(extracted.features), generated)}
        if floor is not None and floor.features is not None:
            compared = [metric for metric in metrics if metric != "inception_score"]  # it uses no real images
            rows[f"real, {options.floor}"] = (
                len(floor.features),
                _report(evaluation, compared, reference, floor.features),
            )
        protocol = _protocol(evaluation, source, reference, generated)
        print(f"reference: {reference_file}")
        write(output, options.name, rows, protocol, extracted.first_images)


def _prepare(options: Any, run: Run, processes: Ranks) -> Evaluation:
    data = run.data()
    latent = bool(getattr(data, "codec", None))
    model = None
    if options.images is None or latent:
        model = run.model()
        model.denoiser.to(processes.device)
        check_labels(model, getattr(data, "classes", None), conditioned=options.labels)
        check_shape(model, data.dataset(options.split).plain().__getitems__([0])["image"])
    decode = _identity if model is None else model.decode
    features = prepare((options.features or InceptionFeatures()).to(processes.device), data, decode, options)
    return Evaluation(options, run, data, model, features, processes)


def _source(evaluation: Evaluation) -> ImageSource:
    options, model = evaluation.options, evaluation.model
    if options.images is not None:
        channels = 3 if model is not None else evaluation.data.channels
        return ImageFiles(options.images, options.count, channels=channels, batch_size=options.batch_size)
    assert model is not None
    return GeneratedImages(
        model,
        _sampler(model, options),
        COUNT if options.count is None else options.count,
        first_seed=options.seed,
        labels=options.labels,
        batch_size=options.batch_size,
    )


def _sampler(model: Any, options: Any) -> ImageSampler:
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


def _report(evaluation: Evaluation, metrics: Sequence[str], reference: Reference, rows: Tensor) -> SampleReport:
    features, device = evaluation.features, evaluation.ranks.device
    predict: Any = getattr(features, "logits_of", None)
    logits = predict(rows.to(device)).cpu() if "inception_score" in metrics and predict else None
    seed = evaluation.options.seed
    return compute_metrics(metrics, features.name, reference, rows, logits=logits, seed=seed, device=device)


def _protocol(
    evaluation: Evaluation, source: ImageSource, reference: Reference, report: SampleReport
) -> dict[str, Any]:
    """Return the protocol of the result card."""
    options = evaluation.options
    if options.images is None:
        shared = evaluation.run.protocol(evaluation.data)
    else:
        shared = {"checkpoint": str(options.images), "seed": options.seed, **software(options.device)}
    external = "external" in reference.fingerprint
    real = dict(reference.fingerprint) if external else {**reference.fingerprint["images"], "read": reference.count}
    omitted = {"data", "split"}  # described in more detail by the reference
    return {
        "measurement": "samples",
        **{key: value for key, value in shared.items() if key not in omitted},
        "features": evaluation.features.fingerprint(),
        "reference": real,
        "samples": source.fingerprint(),
        "settings": report.settings,
    }


def _check(options: Any) -> list[str]:
    """Return the metrics in their standard order; raise ValueError for invalid or conflicting options."""
    requested = parse_names("--metrics", options.metrics, METRICS)
    if options.count is not None:
        at_least("--count", options.count, 2, "50000 is common")
    if options.reference_count is not None:
        at_least("--reference_count", options.reference_count, 2, "omit it to use the entire split")
    at_least("--seed", options.seed, 0, "it is the seed of the first image")
    if options.images is not None:
        for name in ("sampler", "steps", "guidance", "ckpt_path"):
            if options[name] is not None:
                raise ValueError(
                    f"--{name} cannot be combined with --images, since nothing is sampled, got {options[name]}: drop it"
                )
    if options.features is not None and "inception_score" in requested and not hasattr(options.features, "logits_of"):
        if options.metrics:
            name = type(options.features).__name__
            raise ValueError(
                f"the metric inception_score needs class predictions, but {name} has none: drop the metric"
            )
        requested.remove("inception_score")
    return [name for name in METRICS if name in requested]


def _check_reference(reference: Reference | None, metrics: Sequence[str]) -> None:
    """Raise ValueError, before anything is sampled, if the reference lacks the features that the metrics need."""
    if reference is not None and reference.features is None and (needed := metrics_needing_image_features(metrics)):
        raise ValueError(
            f"--metrics must be frechet or inception_score with external statistics, got {', '.join(needed)}: "
            "these compare features of single images"
        )


def _identity(images: Tensor) -> Tensor:
    return images


def _parser() -> Any:
    parser = command_parser("evaluate", DESCRIPTION)
    add_run_arguments(parser, Literal["train", "val", "test"], "train")
    parser.add_argument("--samples", action="store_true", help="evaluate samples")
    parser.add_argument("--count", type=int | None, help=COUNT_HELP)
    parser.add_argument("--metrics", type=str, default="", help=f"metrics, some of {','.join(METRICS)} (default: all)")
    parser.add_argument("--features", type=Features | None, sub_configs=True, help=FEATURES)
    parser.add_argument("--reference", type=Path | None, help=REFERENCE)
    parser.add_argument("--reference_count", type=int | None, help=REFERENCE_COUNT)
    parser.add_argument("--floor", type=Literal["val", "test", "none"], default="none", help=FLOOR)
    parser.add_argument("--images", type=Path | None, help="folder of images to evaluate instead of the model")
    parser.add_argument("--sampler", type=ImageSampler | None, sub_configs=True, help=SAMPLER)
    parser.add_argument("--steps", type=int | None, help="number of sampling steps (default: the sampler's)")
    parser.add_argument("--guidance", type=float | None, help="scale of classifier-free guidance; 1 means no guidance")
    parser.add_argument(
        "--labels", type=bool, default=True, help="whether to condition on the class labels, cycling through them"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed of the first image and of the KID subsets")
    parser.add_argument("--name", type=str, default="samples", help="name of the output files")
    return parser


COUNT_HELP = f"number of images to generate (default: {COUNT}; with --images, all images in the folder)"
FEATURES = """feature extractor: a class of asyncdiff.evaluation, a class of your own, or a YAML file with one (default:
InceptionFeatures, as in FID; TimmFeatures provides DINOv2, TrainedClassifier suits small images)"""
REFERENCE = """file of reference statistics: one from the cache (its path is printed), which must match the other
options, or a published .npz file with mu and sigma (default: computed from --split and cached)"""
REFERENCE_COUNT = "number of real images, evenly spaced over the split (default: the entire split)"
FLOOR = "also evaluate as many real images from this split, as an estimate of the best reachable score"
