"""`python -m asyncdiff evaluate RUN --inpainting`: compare samplers by the quality and cost of inpainting."""

from collections.abc import Sequence
from typing import Any

from asyncdiff.checks import MAX_STEPS, at_least, check_seeds
from asyncdiff.cli.commands.evaluate import Run, add_run_arguments
from asyncdiff.cli.commands.shared.command_parser import CommandParser, parse_options
from asyncdiff.cli.commands.shared.options import parse_names

DESCRIPTION = """Inpaint held-out images under several masks with several samplers, and report the distance to real
images (Fréchet distance) and to the true images (LPIPS), the diversity of the results per image, and the cost.

Masks, images and noise are the same for all samplers. Sampling is unconditional unless --labels is true. With a latent
model, masks cover latents unless --pixel_masks is given, and both the results and the true images are decoded from
latents, so that the autoencoder's reconstruction error does not count."""
MASKS = ("thin", "wide", "square", "extreme", "half", "lines", "super_resolution")
MAX_SEEDS = 1000  # results per image
MAX_EXAMPLES = 100  # images per mask on a contact sheet
METRICS = ("frechet", "lpips")


def main(argv: Sequence[str]) -> None:
    """Parse and check the arguments, then inpaint."""
    options = parse_options("evaluate", DESCRIPTION, _declare, argv)
    masks = parse_names("--masks", options.masks, MASKS)
    metrics = _metrics(options)
    _check(options)
    run = Run(options)
    run.check_files()
    from asyncdiff.cli.jobs.evaluate_inpainting import evaluate  # imports PyTorch

    evaluate(run, masks, metrics)


def _metrics(options: Any) -> list[str]:
    metrics = parse_names("--metrics", options.metrics, METRICS)
    for metric, option in (("frechet", "features"), ("lpips", "lpips")):
        if metric not in metrics and options[option] is not None:
            raise ValueError(
                f"--{option} needs the metric {metric}, got --metrics {options.metrics}: "
                f"add {metric} or drop --{option}"
            )
    return metrics


def _check(options: Any) -> None:
    at_least(
        "--images",
        options.images,
        2,
        "a covariance needs two images, a reliable one many more than there are dimensions",
    )
    at_least("--seeds", options.seeds, 1, "use 2 or more to measure the diversity per image", MAX_SEEDS)
    at_least("--reference", options.reference, 2, "a covariance needs two images")
    at_least("--examples", options.examples, 0, "0 writes no contact sheet", MAX_EXAMPLES)
    if options.steps is not None:
        at_least("--steps", options.steps, 1, "50 is the default", MAX_STEPS)
    check_seeds("--seed", [options.seed])
    if options.samplers is not None and options.steps is not None:
        raise ValueError(f"--steps cannot be combined with --samplers, got {options.steps}: set the steps in the file")


def _declare(parser: CommandParser) -> None:
    add_run_arguments(parser)
    parser.add_argument("--inpainting", action="store_true", help="evaluate inpainting")
    parser.add_argument("--masks", type=str, default="", help=f"masks, some of {','.join(MASKS)} (default: all)")
    parser.add_argument("--pixel_masks", action="store_true", help=PIXEL_MASKS)
    parser.add_object("--samplers", "asyncdiff.sampling.ImageSampler", help=SAMPLERS, by_name=True)
    parser.add_argument(
        "--steps", type=int | None, help="number of sampling steps of the model's sampler (default: 50)"
    )
    parser.add_argument(
        "--repaint", action="store_true", help="also evaluate RePaint with 250 steps and 10 jumps of 10"
    )
    parser.add_argument(
        "--images", type=int, default=100, help="number of held-out images, evenly spaced over the split"
    )
    parser.add_argument("--seeds", type=int, default=1, help="number of results per image")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the noise; masks do not depend on it")
    parser.add_argument("--labels", type=bool, default=False, help="whether to condition on the class labels")
    parser.add_argument("--metrics", type=str, default="", help="metrics, some of frechet,lpips (default: both)")
    parser.add_object("--features", "asyncdiff.evaluation.Features", help=FEATURES)
    parser.add_argument(
        "--reference", type=int, default=10_000, help="number of training images for the Fréchet distance"
    )
    parser.add_object(
        "--lpips",
        "asyncdiff.evaluation.features.lpips.LPIPS",
        help="LPIPS network, optionally with a weight file (default: AlexNet)",
    )
    parser.add_argument("--examples", type=int, default=3, help="number of images per mask on the contact sheet")
    parser.add_argument("--name", type=str, default="inpainting", help="name of the output files")


SAMPLERS = """YAML file with samplers by name, such as {slow: {class_path: asyncdiff.sampling.Sampler, init_args:
{steps: 200}}} (default: the model's own, named async_path)"""
PIXEL_MASKS = """apply the masks of a latent model to pixels: a latent is known only if all of its pixels are, so that
less is known around thin strokes"""
FEATURES = """feature extractor of the Fréchet distance: a class of asyncdiff.evaluation, a class of your own, or a
YAML file with one (default: BackboneFeatures, pooled SqueezeNet features; the result is not FID)"""
