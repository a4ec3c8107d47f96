"""`python -m asyncdiff evaluate RUN --samples`: evaluate sample quality, and record the protocol."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from asyncdiff.checks import MAX_GUIDANCE, MAX_IMAGES, MAX_STEPS, at_least, check_seeds
from asyncdiff.cli.commands.evaluate import Run, add_run_arguments
from asyncdiff.cli.commands.shared.command_parser import CommandParser, parse_options
from asyncdiff.cli.commands.shared.options import SAMPLER, parse_names

DESCRIPTION = """Compare generated with real images: Fréchet distance (FID with Inception features), KID, Inception
score, precision and recall, density and coverage.

Image i is sampled with seed + i, cycling through the class labels. Under torchrun or SLURM, all processes share the
work; the results do not depend on their number. With --images, a folder is evaluated instead of the model. Statistics
of the real images are cached, see --reference."""
COUNT = 50_000
METRICS = ("frechet", "kid", "inception_score", "precision_recall", "density_coverage")


def main(argv: Sequence[str]) -> None:
    """Parse and check the arguments, then evaluate."""
    options = parse_options("evaluate", DESCRIPTION, _declare, argv)
    metrics = _check(options)
    run = Run(options)
    run.find_config()
    if options.images is None:
        run.find_checkpoint()
    run.check_output()
    if options.reference is not None and not os.path.exists(options.reference):
        raise FileNotFoundError(
            f"--reference must be a file of statistics, got {options.reference}, which does not exist: check the path, "
            "or omit it to compute them"
        )
    from asyncdiff.cli.jobs.evaluate_samples import evaluate  # imports PyTorch

    evaluate(run, metrics)


def _check(options: Any) -> list[str]:
    """Return the metrics in their standard order; raise ValueError for invalid or conflicting options."""
    requested = parse_names("--metrics", options.metrics, METRICS)
    if options.count is not None:
        at_least("--count", options.count, 2, f"{COUNT} is common", MAX_IMAGES)
    if options.reference_count is not None:
        at_least("--reference_count", options.reference_count, 2, "omit it to use the entire split")
    check_seeds("--seed", [options.seed])
    if options.guidance is not None:
        at_least("--guidance", options.guidance, 0, "1 turns guidance off, 1.5 to 4 are typical", MAX_GUIDANCE)
    if options.steps is not None:
        at_least("--steps", options.steps, 1, "50 is the default", MAX_STEPS)
    if options.images is not None:
        _check_images(options.images)
        for name in ("sampler", "steps", "guidance", "ckpt_path", "precision"):
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


def _check_images(images: Path) -> None:
    """Raise an error unless the path is a folder or an .npz file."""
    if not images.is_dir() and not (images.suffix == ".npz" and images.is_file()):
        problem = "is another file" if images.exists() else "does not exist"
        raise FileNotFoundError(
            f"--images must be a folder of images or an .npz file, got {images}, which {problem}: check the path"
        )


def _declare(parser: CommandParser) -> None:
    add_run_arguments(parser, Literal["train", "val", "test"], "train")
    parser.add_argument("--samples", action="store_true", help="evaluate samples")
    parser.add_argument("--count", type=int | None, help=COUNT_HELP)
    parser.add_argument("--metrics", type=str, default="", help=f"metrics, some of {','.join(METRICS)} (default: all)")
    parser.add_object("--features", "asyncdiff.evaluation.Features", help=FEATURES)
    parser.add_argument("--reference", type=Path | None, help=REFERENCE)
    parser.add_argument("--reference_count", type=int | None, help=REFERENCE_COUNT)
    parser.add_argument("--floor", type=Literal["val", "test", "none"], default="none", help=FLOOR)
    parser.add_argument("--images", type=Path | None, help=IMAGES)
    parser.add_object("--sampler", "asyncdiff.sampling.ImageSampler", help=SAMPLER)
    parser.add_argument("--steps", type=int | None, help="number of sampling steps (default: the sampler's)")
    parser.add_argument("--guidance", type=float | None, help="scale of classifier-free guidance; 1 means no guidance")
    parser.add_argument(
        "--labels", type=bool, default=True, help="whether to condition on the class labels, cycling through them"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed of the first image and of the KID subsets")
    parser.add_argument("--name", type=str, default="samples", help="name of the output files")


COUNT_HELP = f"number of images to generate (default: {COUNT}; with --images, all of them)"
FEATURES = """feature extractor: a class of asyncdiff.evaluation, a class of your own, or a YAML file with one (default:
InceptionFeatures, as in FID; TimmFeatures provides DINOv2, TrainedClassifier suits small images)"""
REFERENCE = """file of reference statistics: one from the cache (its path is printed), which must match the other
options, or a published .npz file with mu and sigma (default: computed from --split and cached)"""
REFERENCE_COUNT = "number of real images, evenly spaced over the split (default: the entire split)"
IMAGES = """folder of images to evaluate instead of the model, or an .npz file as ADM writes it, with arr_0, uint8 (n,
height, width, channels)"""
FLOOR = "also evaluate as many real images from this split, as an estimate of the best reachable score"
