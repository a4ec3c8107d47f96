"""`python -m asyncdiff evaluate RUN --likelihood`: evaluate bits per dimension along several noise paths."""

from collections.abc import Sequence

from asyncdiff.checks import MAX_STEPS, at_least, check_seeds, positive
from asyncdiff.cli.commands.evaluate import Run, add_run_arguments
from asyncdiff.cli.commands.shared.command_parser import CommandParser, parse_options

DESCRIPTION = """Compute bits per dimension of a trained model on held-out images, along several noise paths.

For a perfect model the bound on -log p is the same on every path. The difference between paths, the path gap, shows how
far the network is from one consistent joint score. Images and noise are the same along all paths."""

MAX_VARIANCE = 10**6  # of latents that are not normalized; pixels have at most 1


def main(argv: Sequence[str]) -> None:
    """Parse and check the arguments, then compute the bounds."""
    options = parse_options("evaluate", DESCRIPTION, _declare, argv)
    options.precision = options.precision or "float32"  # whatever the run's
    at_least("--points", options.points, 2, "64 is the default", MAX_STEPS)
    if options.images is not None:
        at_least("--images", options.images, 2, "a standard error needs two images")
    check_seeds("--seed", [options.seed])
    if options.t_min is not None and not 0 < options.t_min < 1:
        raise ValueError(f"--t_min must lie in (0, 1), got {options.t_min}: use 0.002 for 8-bit pixels, or omit it")
    positive("--variance", options.variance, "0.1 is the default")
    at_least("--variance", options.variance, 0, "0.1 is the default", MAX_VARIANCE)
    run = Run(options)
    run.check_files()
    from asyncdiff.cli.jobs.evaluate_likelihood import evaluate  # imports PyTorch

    evaluate(run)


def _declare(parser: CommandParser) -> None:
    add_run_arguments(parser, precision="float32")
    parser.add_argument("--likelihood", action="store_true", help="evaluate likelihood")
    parser.add_object("--paths", "asyncdiff.noise.Path", help=PATHS, by_name=True)
    parser.add_argument("--images", type=int | None, help="number of images (default: the entire split)")
    parser.add_argument("--points", type=int, default=64, help="number of network evaluations per image and path")
    parser.add_object("--decoder", "asyncdiff.denoising.Decoder", help=DECODER)
    parser.add_object("--mask", "asyncdiff.noise.Mask", help=MASK)
    parser.add_argument("--labels", type=bool, default=True, help="whether to condition on the class labels")
    parser.add_argument(
        "--t_min", type=float | None, help="lowest noise level of the paths (default: one that suits the decoder)"
    )
    parser.add_argument("--variance", type=float, default=0.1, help=VARIANCE)
    parser.add_argument(
        "--seed", type=int, default=0, help="random seed; the noise of image i of the split has seed + i"
    )
    parser.add_argument("--name", type=str, default="likelihood", help="name of the output files")


PATHS = """YAML file with noise paths by name, such as {spiral: {class_path: asyncdiff.noise.Ordered, init_args: ...}}
(default: synchronous, async_patch, wavefront with overlap 0.5, and raster without overlap)"""
DECODER = "decoder of the pixels (default: categorical, with as many values as the data have)"
MASK = "mask of known patches, to bound -log p(unknown | known) (default: none)"
VARIANCE = "expected variance of a pixel given its surroundings, for importance sampling of s (FluxProgress)"
