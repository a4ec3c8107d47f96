"""`python -m asyncdiff evaluate RUN --likelihood`: evaluate bits per dimension along several noise paths."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from asyncdiff.checkpoints import object_config
from asyncdiff.checks import at_least
from asyncdiff.cli.commands.evaluate import Run, add_run_arguments, check_shape
from asyncdiff.cli.commands.shared.command_parser import command_parser
from asyncdiff.denoising.likelihood import CategoricalDecoder, Decoder
from asyncdiff.evaluation.likelihood_by_path import (
    STANDARD_PATHS,
    PathLikelihoodEvaluator,
    PathLikelihoods,
    check_labels,
)
from asyncdiff.evaluation.result_card import make_card
from asyncdiff.noise import paths as path_families
from asyncdiff.noise.masks import Mask
from asyncdiff.noise.progress_samplers import FluxProgress

DESCRIPTION = """Compute bits per dimension of a trained model on held-out images, along several noise paths.

For a perfect model the bound on -log p is the same on every path. The difference between paths, the path gap, shows how
far the network is from one consistent joint score. Images and noise are the same along all paths."""


def main(argv: Sequence[str]) -> None:
    """Parse the arguments, compute the bounds, print the table, and write a result card and a figure."""
    parser = _parser()
    options = parser.instantiate(parser.parse_args(argv))
    at_least("--points", options.points, 2, "64 is the default")
    if options.images is not None:
        at_least("--images", options.images, 2, "a standard error needs two images")
    run = Run(options)
    output = run.output()
    model, data = run.model(), run.data()
    check_labels(model, getattr(data, "classes", None), conditioned=options.labels)
    decoder = options.decoder or CategoricalDecoder(int(getattr(data, "values", 256)))
    progress_sampler = FluxProgress(options.variance, model.process)
    evaluator = PathLikelihoodEvaluator(
        options.paths or STANDARD_PATHS, options.points, decoder, options.mask, progress_sampler, options.t_min
    )
    protocol = {"measurement": "likelihood", **run.protocol(data)} | {
        "points": options.points,
        "floors": evaluator.lowest_levels(model.process),
        "labels": bool(options.labels and model.classes),
        "decoder": object_config.describe(decoder),
        "mask": object_config.describe(options.mask),
        "spacing": object_config.describe(progress_sampler),
        "paths": {name: object_config.describe(path) for name, path in evaluator.paths.items()},
    }
    likelihoods = compute_bounds(model, data, evaluator, options)
    print(likelihoods.table())
    _write(output, options.name, likelihoods, protocol | {"images": likelihoods.images})


@torch.no_grad()
def compute_bounds(model: Any, data: Any, evaluator: PathLikelihoodEvaluator, options: Any) -> PathLikelihoods:
    """Compute the bounds for `options.images` images, evenly spaced over the split."""
    from asyncdiff.callbacks.validation_images import evenly_spaced_indices

    images = data.dataset(options.split).plain()
    indices = evenly_spaced_indices(images, options.images)
    sample = images.__getitems__(evenly_spaced_indices(images, 4))["image"]
    check_shape(model, sample)
    evaluator.check(model.denoiser, sample.to(options.device))
    rows = []
    starts = range(0, len(indices), options.batch_size)
    for first in tqdm(starts, desc="likelihood", unit="batch", leave=False, disable=None):
        batch = images.__getitems__(indices[first : first + options.batch_size])
        label = batch["label"].to(options.device) if options.labels and model.classes else None
        seeds = [options.seed + index for index in batch["index"].tolist()]
        rows.append(evaluator.evaluate(model.denoiser, batch["image"].to(options.device), label, seeds).cpu())
    return evaluator.summarize(torch.cat(rows), model.denoiser.grid(model.shape[1:]))


def _parser() -> Any:
    parser = command_parser("evaluate", DESCRIPTION)
    add_run_arguments(parser)
    parser.add_argument("--likelihood", action="store_true", help="evaluate likelihood")
    parser.add_argument("--paths", type=dict[str, path_families.Path] | None, sub_configs=True, help=PATHS)
    parser.add_argument("--images", type=int | None, help="number of images (default: the entire split)")
    parser.add_argument("--points", type=int, default=64, help="number of network evaluations per image and path")
    parser.add_argument("--decoder", type=Decoder | None, help=DECODER)
    parser.add_argument("--mask", type=Mask | None, help=MASK)
    parser.add_argument("--labels", type=bool, default=True, help="whether to condition on the class labels")
    parser.add_argument(
        "--t_min", type=float | None, help="lowest noise level of the paths (default: one that suits the decoder)"
    )
    parser.add_argument("--variance", type=float, default=0.1, help=VARIANCE)
    parser.add_argument(
        "--seed", type=int, default=0, help="random seed; the noise of image i of the split has seed + i"
    )
    parser.add_argument("--name", type=str, default="likelihood", help="name of the output files")
    return parser


PATHS = """YAML file with noise paths by name, such as {spiral: {class_path: asyncdiff.noise.Ordered, init_args: ...}}
(default: synchronous, async_patch, wavefront with overlap 0.5, and raster without overlap)"""
DECODER = "decoder of the pixels (default: categorical, with as many values as the data have)"
MASK = "mask of known patches, to bound -log p(unknown | known) (default: none)"
VARIANCE = "expected variance of a pixel given its surroundings, for importance sampling of s (FluxProgress)"


def _write(folder: Path, name: str, likelihoods: PathLikelihoods, protocol: dict[str, Any]) -> None:
    from asyncdiff.evaluation.figures.bits_figure import bits_figure
    from asyncdiff.evaluation.figures.style import save

    card, figure = folder / f"{name}.json", folder / f"{name}.png"
    card.write_text(json.dumps(make_card(protocol, likelihoods.scalars(), **likelihoods.card()), indent=2))
    save(bits_figure(likelihoods), figure)
    print(f"result card: {card}\nfigure: {figure}")
