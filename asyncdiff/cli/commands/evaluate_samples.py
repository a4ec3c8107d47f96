"""`python -m asyncdiff evaluate RUN --samples`: how good a model's images are, in numbers that say what they mean."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from asyncdiff.checks import at_least
from asyncdiff.cli import trusted_packages
from asyncdiff.cli.commands.distributed import Ranks, ranks
from asyncdiff.cli.commands.draw import altered
from asyncdiff.cli.commands.evaluate import Run, add_run, check_shape
from asyncdiff.cli.commands.extract_features import extract, reference_for
from asyncdiff.cli.commands.image_sources import Drawn, ImageFiles, ImageSource, RealImages
from asyncdiff.cli.commands.options import command_parser
from asyncdiff.cli.commands.write_results import write
from asyncdiff.evaluation.features.base import Features
from asyncdiff.evaluation.features.inception import InceptionFeatures
from asyncdiff.evaluation.likelihood_by_path import check_labels
from asyncdiff.evaluation.reference_statistics import Reference
from asyncdiff.evaluation.result_card import software
from asyncdiff.evaluation.sample_report import METRICS, Quality, needs_rows, quality
from asyncdiff.sampling import (
    adaptive,  # noqa: F401  samplers to name without the module
    look_ahead,  # noqa: F401  samplers to name without the module
    repaint,  # noqa: F401  samplers to name without the module
)
from asyncdiff.sampling.guidance import ClassifierFree
from asyncdiff.sampling.samplers import ImageSampler
from asyncdiff.tasks.contact_sheet import SHOWN

DESCRIPTION = """Generated images against real ones: Fréchet distance (FID with Inception's features), KID, Inception
score, precision and recall, density and coverage.

Image i is drawn from seed + i, the classes in turn. Under torchrun or SLURM the images are shared by all processes, and
the numbers are the same for any number of them. With --images a folder is measured in place of the model. Statistics of
the real images are kept, see --reference."""
COUNT = 50_000


@dataclass(frozen=True)
class Work:
    """What all parts of an evaluation look at.

    Attributes:
        options: the command line's.
        run: the run.
        data: its data module.
        model: its model; None where a folder of pixels is measured.
        features: prepared.
        ranks: the processes.
    """

    options: Any
    run: Run
    data: Any
    model: Any | None
    features: Features
    ranks: Ranks

    def real(self, split: str, count: int | None) -> RealImages:
        """Real images of a split."""
        codec = None if self.model is None else self.model.codec
        decode = _as_they_are if self.model is None else self.model.decode
        size = self.options.batch_size
        return RealImages(self.data, split, count, decode=decode, codec=codec, batch_size=size)


def main(args: Sequence[str]) -> None:
    """Read the words, measure, print the table and write it, the card and a sheet of the first images."""
    parser = _parser()
    options = parser.instantiate(parser.parse_args(args))
    metrics = _check(options)
    run = Run.of(options)
    output = run.output(options.output)
    with ranks(options.device) as processes:
        work = _prepared(options, run, processes)
        source = _source(work)
        reference, told = reference_for(
            work.features, work.real(options.split, options.reference_count), processes, file=options.reference
        )
        _check_reference(reference, metrics)
        floor = None
        if options.floor != "none":
            floor, _ = reference_for(work.features, work.real(options.floor, source.count), processes)
        found = extract(work.features, source, processes, shown=SHOWN)
        if reference is None or not processes.first:  # which has it all
            return
        generated = _quality(work, metrics, reference, found.rows)
        rows = {"given" if options.images else "generated": (len(found.rows), generated)}
        if floor is not None and floor.rows is not None:
            compared = [metric for metric in metrics if metric != "inception_score"]  # which looks at no real images
            rows[f"real, {options.floor}"] = (len(floor.rows), _quality(work, compared, reference, floor.rows))
        protocol = _protocol(work, source, reference, generated)
        print(f"reference: {told}")
        write(output, options.name, rows, protocol, found.shown)


def _prepared(options: Any, run: Run, processes: Ranks) -> Work:
    data = run.data()
    latent = bool(getattr(data, "codec", None))
    model = None
    if options.images is None or latent:
        model = run.model(options.weights).to(processes.device)
        check_labels(model, getattr(data, "classes", None), told=options.labels)
        check_shape(model, data.dataset(options.split).plain().__getitems__([0])["image"])
    features = (options.features or InceptionFeatures()).to(processes.device)
    decode = _as_they_are if model is None else model.decode
    batches = data.images("train", options.batch_size)
    features.prepare({**batch, "image": decode(batch["image"])} for batch in batches)
    return Work(options, run, data, model, features, processes)


def _source(work: Work) -> ImageSource:
    options, model = work.options, work.model
    if options.images is not None:
        channels = 3 if model is not None else work.data.channels
        return ImageFiles(options.images, options.count, channels=channels, batch_size=options.batch_size)
    assert model is not None
    return Drawn(
        model,
        _sampler(model, options),
        COUNT if options.count is None else options.count,
        first_seed=options.seed,
        labels=options.labels,
        batch_size=options.batch_size,
    )


def _sampler(model: Any, options: Any) -> ImageSampler:
    """The options' sampler, or the model's own, with the steps and the guidance that are asked for."""
    sampler: ImageSampler = options.sampler or model.sampler
    changes: dict[str, Any] = {} if options.steps is None else {"steps": options.steps}
    if options.guidance is not None:
        if not (options.labels and model.classes):
            raise ValueError(f"--guidance must be left out without labels to be guided by, got {options.guidance}")
        others = [rule for rule in sampler.guidance if not isinstance(rule, ClassifierFree)]
        changes["guidance"] = [*others, ClassifierFree(options.guidance)]
    return altered(sampler, ["asyncdiff", *trusted_packages.extra()], **changes) if changes else sampler


def _quality(work: Work, metrics: Sequence[str], reference: Reference, rows: Tensor) -> Quality:
    predict: Any = getattr(work.features, "logits_of", None)
    logits = predict(rows.to(work.ranks.device)).cpu() if "inception_score" in metrics and predict else None
    name, seed = work.features.name, work.options.seed
    return quality(metrics, name, reference, rows, logits=logits, seed=seed, device=work.ranks.device)


def _protocol(work: Work, source: ImageSource, reference: Reference, found: Quality) -> dict[str, Any]:
    """What the numbers were made of."""
    options = work.options
    if options.images is None:
        stamp = work.run.stamp(options, work.data)
    else:
        stamp = {"checkpoint": str(options.images), "seed": options.seed, **software(options.device)}
    external = "external" in reference.stamp
    real = dict(reference.stamp) if external else {**reference.stamp["images"], "read": reference.count}
    own = {"data", "split"}  # told in more detail by the reference
    return {
        "measurement": "samples",
        **{key: value for key, value in stamp.items() if key not in own},
        "features": work.features.stamp(),
        "reference": real,
        "samples": source.stamp(),
        "settings": found.settings,
    }


def _check(options: Any) -> list[str]:
    """The metrics, in their usual order; ValueError for options that do not go together."""
    words = [word.strip() for word in options.metrics.split(",")] if options.metrics else list(METRICS)
    for word in words:
        if word not in METRICS:
            raise ValueError(f"--metrics must be some of {','.join(METRICS)}, got {word}: choose among them")
    if options.count is not None:
        at_least("--count", options.count, 2, "50000 is usual")
    if options.reference_count is not None:
        at_least("--reference_count", options.reference_count, 2, "leave it out for all of the split")
    at_least("--seed", options.seed, 0, "it is the seed of the first image")
    if options.images is not None:
        for name in ("sampler", "steps", "guidance", "ckpt_path"):
            if options[name] is not None:
                raise ValueError(
                    f"--{name} must be left out with --images, which are drawn already, got {options[name]}"
                )
    if options.features is not None and "inception_score" in words and not hasattr(options.features, "logits_of"):
        if options.metrics:
            name = type(options.features).__name__
            raise ValueError(f"--metrics must leave inception_score out for {name}, which predicts no classes")
        words.remove("inception_score")
    return [name for name in METRICS if name in words]


def _check_reference(reference: Reference | None, metrics: Sequence[str]) -> None:
    """Refuse statistics that lack what the metrics need, before anything is drawn."""
    if reference is not None and reference.rows is None and (needed := needs_rows(metrics)):
        raise ValueError(
            f"--metrics must be frechet or inception_score with statistics from elsewhere, got {', '.join(needed)}: "
            "they compare with features of single images"
        )


def _as_they_are(images: Tensor) -> Tensor:
    return images


def _parser() -> Any:
    parser = command_parser("evaluate", DESCRIPTION)
    add_run(parser, Literal["train", "val", "test"], "train")
    parser.add_argument("--samples", action="store_true", help="generated images")
    parser.add_argument("--count", type=int | None, help=f"generated images; {COUNT} by default, of a folder all")
    parser.add_argument("--metrics", type=str, default="", help=f"some of {','.join(METRICS)}; all by default")
    parser.add_argument("--features", type=Features | None, sub_configs=True, help=FEATURES)
    parser.add_argument("--reference", type=Path | None, help=REFERENCE)
    parser.add_argument("--reference_count", type=int | None, help="real images, evenly over the split; all by default")
    parser.add_argument("--floor", type=Literal["val", "test", "none"], default="none", help=FLOOR)
    parser.add_argument("--images", type=Path | None, help="a folder of images to measure in place of the model")
    parser.add_argument("--sampler", type=ImageSampler | None, sub_configs=True, help=SAMPLER)
    parser.add_argument("--steps", type=int | None, help="of the sampler; its own by default")
    parser.add_argument("--guidance", type=float | None, help="scale of classifier-free guidance; 1 is off")
    parser.add_argument(
        "--labels", type=bool, default=True, help="tell the classes, in turn, where the model knows any"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first image, and of KID's subsets")
    parser.add_argument("--name", type=str, default="samples", help="of all files")
    return parser


FEATURES = """a class of asyncdiff.evaluation or your own, or a YAML file of one; by default InceptionFeatures, those of
FID. TimmFeatures has DINOv2's, TrainedClassifier suits small images"""
REFERENCE = """a file of statistics: one that was kept before (its place is printed), checked against what is asked
for, or an .npz with mu and sigma as others publish; computed from --split, and kept, by default"""
FLOOR = "measure as many real images of this split, too: what a perfect model of the data would reach"
SAMPLER = "a class of asyncdiff.sampling.ImageSampler or a YAML file of one; the run's own by default"
