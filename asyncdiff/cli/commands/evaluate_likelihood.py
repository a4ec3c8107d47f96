"""`python -m asyncdiff evaluate RUN --likelihood`: bits per dimension of a trained model along several paths."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from asyncdiff.checkpoints import object_config
from asyncdiff.checks import at_least
from asyncdiff.cli.commands.evaluate import Run, add_run, check_shape
from asyncdiff.cli.commands.options import command_parser
from asyncdiff.denoising.likelihood import CategoricalDecoder, Decoder
from asyncdiff.evaluation.likelihood_by_path import STANDARD_PATHS, PathBounds, PathLikelihoods, check_labels
from asyncdiff.evaluation.result_card import card_of
from asyncdiff.noise import paths as path_families
from asyncdiff.noise.masks import Mask
from asyncdiff.noise.progress import FluxProgress

DESCRIPTION = """Bits per dimension of a run's model on held-out images, along several noise paths.

The bound on -log p is the same on every path for a perfect model; how far the paths lie apart, the path gap, says how
far the network is from one consistent joint score. Images and noise are the same along all paths."""


def main(args: Sequence[str]) -> None:
    """Read the words, measure, print the table and write what it was made of."""
    parser = _parser()
    options = parser.instantiate(parser.parse_args(args))
    at_least("--points", options.points, 2, "64 is usual")
    if options.images is not None:
        at_least("--images", options.images, 2, "a standard error needs two images")
    run = Run.of(options)
    output = run.output(options.output)
    model, data = run.model(options.weights).to(options.device), run.data()
    check_labels(model, getattr(data, "classes", None), told=options.labels)
    decoder = options.decoder or CategoricalDecoder(int(getattr(data, "values", 256)))
    progress_sampler = FluxProgress(options.variance, model.process)
    bounds = PathBounds(
        options.paths or STANDARD_PATHS, options.points, decoder, options.mask, progress_sampler, options.t_min
    )
    stamp = {"measurement": "likelihood", **run.stamp(options, data)} | {
        "points": options.points,
        "floors": bounds.floors(model.process),
        "labels": bool(options.labels and model.classes),
        "decoder": object_config.describe(decoder),
        "mask": object_config.describe(options.mask),
        "spacing": object_config.describe(progress_sampler),
        "paths": {name: object_config.describe(path) for name, path in bounds.paths.items()},
    }
    summary = measure(model, data, bounds, options)
    print(summary.table())
    _write(output, options.name, summary, stamp | {"images": summary.images})


@torch.no_grad()
def measure(model: Any, data: Any, bounds: PathBounds, options: Any) -> PathLikelihoods:
    """The bounds of `options.images` images of the split, spread evenly over it."""
    from asyncdiff.callbacks.validation_images import spread

    images = data.dataset(options.split).plain()
    indices = spread(images, options.images)
    sample = images.__getitems__(spread(images, 4))["image"]
    check_shape(model, sample)
    bounds.check(model.denoiser, sample.to(options.device))
    rows = []
    starts = range(0, len(indices), options.batch_size)
    for first in tqdm(starts, desc="likelihood", unit="batch", leave=False, disable=None):
        batch = images.__getitems__(indices[first : first + options.batch_size])
        label = batch["label"].to(options.device) if options.labels and model.classes else None
        seeds = [options.seed + index for index in batch["index"].tolist()]
        rows.append(bounds.rows(model.denoiser, batch["image"].to(options.device), label, seeds).cpu())
    return bounds.summary(torch.cat(rows), model.denoiser.grid(model.shape[1:]))


def _parser() -> Any:
    parser = command_parser("evaluate", DESCRIPTION)
    add_run(parser)
    parser.add_argument("--likelihood", action="store_true", help="the bound on -log p along several paths")
    parser.add_argument("--paths", type=dict[str, path_families.Path] | None, sub_configs=True, help=PATHS)
    parser.add_argument("--images", type=int | None, help="number of images; all of the split by default")
    parser.add_argument("--points", type=int, default=64, help="evaluations of the network per image and path")
    parser.add_argument("--decoder", type=Decoder | None, help="of the pixels; categorical with the data's values")
    parser.add_argument("--mask", type=Mask | None, help="what is known: bounds -log p(unknown | known)")
    parser.add_argument("--labels", type=bool, default=True, help="tell the network the classes, where it knows any")
    parser.add_argument("--t_min", type=float | None, help="floor of the paths; what suits the decoder by default")
    parser.add_argument("--variance", type=float, default=0.1, help="of FluxProgress, the importance sampling of s")
    parser.add_argument(
        "--seed", type=int, default=0, help="image i of the split is measured with the noise of seed + i"
    )
    parser.add_argument("--name", type=str, default="likelihood", help="of both files")
    return parser


PATHS = """a YAML file of names with path classes, {spiral: {class_path: asyncdiff.noise.Ordered, init_args: ...}}; by
default synchronous, async_patch, wavefront (overlap 0.5) and raster (strict)"""


def _write(folder: Path, name: str, summary: PathLikelihoods, stamp: dict[str, Any]) -> None:
    from asyncdiff.evaluation.figures.bits_figure import bit_figure
    from asyncdiff.evaluation.figures.style import save

    card, figure = folder / f"{name}.json", folder / f"{name}.png"
    card.write_text(json.dumps(card_of(stamp, summary.scalars(), **summary.card()), indent=2))
    save(bit_figure(summary), figure)
    print(f"numbers: {card}\nwhere the bits are: {figure}")
