"""`python -m asyncdiff evaluate RUN --inpainting`: compare samplers by the quality and cost of inpainting."""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from asyncdiff.checkpoints import object_config
from asyncdiff.checks import at_least
from asyncdiff.cli.commands.evaluate import Run, add_run_arguments, check_shape
from asyncdiff.cli.commands.shared.command_parser import command_parser
from asyncdiff.cli.commands.shared.distributed import Ranks
from asyncdiff.cli.commands.shared.extract_features import prepare
from asyncdiff.cli.commands.shared.image_sources import RealImages
from asyncdiff.cli.commands.shared.options import parse_names, with_arguments
from asyncdiff.evaluation.features.base import Features
from asyncdiff.evaluation.features.lpips import LPIPS, BackboneFeatures, upsampling_factor
from asyncdiff.evaluation.frechet import FrechetDistance
from asyncdiff.evaluation.inpainting_benchmark import (
    InpaintingBenchmark,
    InpaintingResults,
    ValidationImages,
    mask_fractions,
)
from asyncdiff.evaluation.likelihood_by_path import check_labels
from asyncdiff.evaluation.result_card import make_card
from asyncdiff.noise.masks import MASKS, Known, Mask, mask_by_name
from asyncdiff.sampling.repaint import RePaint
from asyncdiff.sampling.samplers import ImageSampler

DESCRIPTION = """Inpaint held-out images under several masks with several samplers, and report the distance to real
images (Fréchet distance) and to the true images (LPIPS), the diversity of the results per image, and the cost.

Masks, images and noise are the same for all samplers. Sampling is unconditional unless --labels is true. With a latent
model, masks cover latents unless --pixel_masks is given, and both the results and the true images are decoded from
latents, so that the autoencoder's reconstruction error does not count."""
METRICS = ("frechet", "lpips")

Tile = Float[Tensor, "3 height width"]


class OnPixels(Mask):
    """Latent mask derived from a pixel mask: a latent is known if all of its pixels are.

    Args:
        mask: pixel mask.
        factor: number of pixels per latent along each side.
    """

    def __init__(self, mask: Mask, factor: int):
        self.mask = mask
        self.factor = factor
        self.seed_dependent = mask.seed_dependent

    def __call__(self, height: int, width: int, *, seed: int = 0) -> Known:
        pixels = self.mask(height * self.factor, width * self.factor, seed=seed)
        return pixels.reshape(height, self.factor, width, self.factor).all(3).all(1)


def main(argv: Sequence[str]) -> None:
    """Parse the arguments, inpaint, print the table, and write it with a result card and a contact sheet."""
    parser = _parser()
    options = parser.instantiate(parser.parse_args(argv))
    masks = {name: mask_by_name(name) for name in parse_names("--masks", options.masks, MASKS)}
    metrics = _metrics(options)
    _check(options)
    run = Run(options)
    output = run.output()
    model, data = run.model(), run.data()
    check_labels(model, getattr(data, "classes", None), conditioned=options.labels)
    if options.pixel_masks:
        masks = on_pixels(masks, model)
    samplers = _samplers(model.sampler, options)
    images = validation_images(model, data, options)
    bench = InpaintingBenchmark(
        lpips=(options.lpips or LPIPS()).to(options.device) if "lpips" in metrics else None,
        frechet=reference(data, model, options) if "frechet" in metrics else None,
        rounds=options.seeds,
        seed=options.seed,
        batch_size=options.batch_size,
        decode=model.decode,
    )
    comparison = Comparison(model.denoiser, images, bench, masks, samplers)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"the Fréchet distance of \d+")  # for few images; the table mentions it
        results = comparison.evaluate()
    print(results.table())
    card, table = output / f"{options.name}.json", output / f"{options.name}.md"
    protocol = run.protocol(data) | comparison.protocol(results)
    card.write_text(json.dumps(make_card(protocol, results.metrics(), **results.card()), indent=2))
    table.write_text(results.table() + "\n")
    print(f"result card: {card}\ntable: {table}")
    if options.examples:
        sheet = output / f"{options.name}.png"
        comparison.write_contact_sheet(sheet, options.examples)
        print(f"contact sheet: {sheet}")


def on_pixels(masks: Mapping[str, Mask], model: Any) -> dict[str, Mask]:
    """Convert pixel masks to latent masks; raise ValueError for a pixel model, or if no latent would be known."""
    if model.codec is None:
        raise ValueError("--pixel_masks needs a latent model; masks of this pixel model cover pixels already: drop it")
    latent_masks: dict[str, Mask] = {name: OnPixels(mask, model.codec.factor) for name, mask in masks.items()}
    for name, mask in latent_masks.items():
        if not mask.seed_dependent and not mask(*model.shape[1:]).any():
            raise ValueError(f"--masks {name} leaves no latent known with --pixel_masks: choose other masks")
    return latent_masks


def validation_images(model: Any, data: Any, options: Any) -> ValidationImages:
    """Load the images to inpaint, evenly spaced over the split, with their labels if --labels is true."""
    from asyncdiff.callbacks.validation_images import evenly_spaced_indices

    images = data.dataset(options.split).plain()
    batch = images.__getitems__(evenly_spaced_indices(images, options.images))
    check_shape(model, batch["image"])
    conditioned = options.labels and model.classes
    return ValidationImages(batch["image"], batch["index"].tolist(), batch["label"] if conditioned else None)


def reference(data: Any, model: Any, options: Any) -> FrechetDistance:
    """Return a FrechetDistance with statistics of training images, evenly spaced and decoded if they are latents."""
    features = (options.features or BackboneFeatures()).to(options.device)
    metric = FrechetDistance(prepare(features, data, model.decode, options))
    size = options.batch_size
    source = RealImages(data, "train", options.reference, decode=model.decode, codec=model.codec, batch_size=size)
    total, batches = source.batches(Ranks(0, 1, torch.device(options.device)))
    for _, images in tqdm(batches, desc="reference", total=total, unit="batch", leave=False, disable=None):
        metric.update(images, real=True)
    return metric


@dataclass(frozen=True)
class Comparison:
    """Inpainting of the same images with every sampler under every mask."""

    denoiser: Any
    images: ValidationImages
    bench: InpaintingBenchmark
    masks: Mapping[str, Mask]
    samplers: Mapping[str, ImageSampler]

    def evaluate(self) -> InpaintingResults:
        """Inpaint, and measure quality and cost."""
        images, bench = self.images, self.bench
        rows = []
        total = len(self.masks) * len(self.samplers) * len(images.images) * bench.rounds
        with tqdm(total=total, unit="image", leave=False, disable=None) as bar:
            for mask in self.masks.items():
                for sampler in self.samplers.items():
                    bar.set_description(f"{mask[0]}, {sampler[0]}")
                    rows.append(bench.evaluate(self.denoiser, images, mask, sampler, progress=bar.update))
        metric, lpips = bench.frechet, bench.lpips
        grid = self.denoiser.grid((images.images.shape[2], images.images.shape[3]))
        return InpaintingResults(
            rows,
            {name: mask_fractions(images.masks(mask), grid) for name, mask in self.masks.items()},
            images=len(images.images),
            rounds=bench.rounds,
            frechet_real=bench.frechet_of_real(images, next(self.denoiser.parameters()).device),
            lpips=None if lpips is None else str(lpips.name),
            features=None if metric is None else str(metric.features.name),
            dim=0 if metric is None else metric.dim,
            reference=0 if metric is None else metric.real_n,
        )

    def protocol(self, results: InpaintingResults) -> dict[str, Any]:
        """Return the part of the protocol specific to inpainting."""
        images, bench = self.images, self.bench
        features = None if bench.frechet is None else cast(Features, bench.frechet.features)
        return {
            "measurement": "inpainting",
            "images": len(images.images),
            "image_size": list(images.images.shape[1:]),
            "results_per_image": bench.rounds,
            "labels": images.labels is not None,
            "batch_size": bench.batch_size,
            "masks": {
                name: object_config.describe(mask) | {"drawn_per_image": mask.seed_dependent}
                for name, mask in self.masks.items()
            },
            "samplers": {name: object_config.describe(sampler) for name, sampler in self.samplers.items()},
            "features": None if features is None else features.fingerprint(),
            "dimensions": results.dim,
            "reference": {"split": "train", "images": results.reference} if features is not None else None,
            "lpips": _describe(bench.lpips),
            "enlarged": upsampling_factor(*bench.decode(images.images[:1]).shape[2:]),
        }

    def write_contact_sheet(self, file: Path, examples: int) -> None:
        """Write a contact sheet with a row per mask: known pixels, true image and results of a few examples."""
        from asyncdiff.callbacks.inpainting_grid import paint_unknown
        from asyncdiff.callbacks.periodic_image import tile_images
        from asyncdiff.callbacks.validation_images import evenly_spaced_indices
        from asyncdiff.evaluation.figures.style import save

        images, decode = self.images, self.bench.decode
        indices = list(evenly_spaced_indices(images.images, examples))
        labels = None if images.labels is None else images.labels[indices]
        subset = ValidationImages(images.images[indices], [images.indices[i] for i in indices], labels)
        truth = decode(subset.images).cpu().expand(-1, 3, -1, -1)
        rows: dict[str, list[Tile]] = {}
        for name, mask in tqdm(self.masks.items(), desc="contact sheet", unit="mask", leave=False, disable=None):
            known = subset.masks(mask)
            inpainted = [self.bench.inpaint(self.denoiser, subset, known, s) for s in self.samplers.values()]
            results = [decode(result).cpu().expand_as(truth) for result in inpainted]
            columns = torch.stack([paint_unknown(truth, known), truth, *results], dim=1)
            rows[name] = [tile_images(example, columns=len(example)) for example in columns]
        save(_sheet(rows, ["known", "truth", *self.samplers]), file)


def _sheet(rows: Mapping[str, Sequence[Tile]], heads: Sequence[str]) -> Any:
    """Return a figure with one row per mask and the examples side by side, under column headers."""
    from asyncdiff.evaluation.figures.style import FAINT, Sheet, plot_style

    tile, label, head, gap = 0.8, 1.2, 0.35, 0.15  # inches
    width = tile * len(heads)
    examples = len(next(iter(rows.values())))
    with plot_style():
        sheet = Sheet(label + (width + gap) * examples, head + tile * len(rows) + gap)
        for k in range(examples):
            left = label + (width + gap) * k
            for i, text in enumerate(heads):
                sheet.text(left + tile * (i + 0.5), head - 0.06, text, ha="center", va="bottom", color=FAINT)
            for row, (name, tiles) in enumerate(rows.items()):
                top = head + tile * row
                if k == 0:
                    sheet.text(0.1, top + tile / 2, name.replace("_", " "), va="center")
                axes = sheet.axes(left, top, width, tile)
                axes.imshow(tiles[k].permute(1, 2, 0).numpy(), aspect="auto", interpolation="nearest")
                axes.set_axis_off()
    return sheet.figure


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
    at_least("--seeds", options.seeds, 1, "use 2 or more to measure the diversity per image")
    at_least("--reference", options.reference, 2, "a covariance needs two images")
    at_least("--examples", options.examples, 0, "0 writes no contact sheet")
    if options.samplers is not None and options.steps is not None:
        raise ValueError(f"--steps cannot be combined with --samplers, got {options.steps}: set the steps in the file")


def _samplers(default: ImageSampler, options: Any) -> dict[str, ImageSampler]:
    """Return the samplers from the file, by default the model's own, plus RePaint with --repaint."""
    samplers = dict(options.samplers) if options.samplers else {"async_path": _with_steps(default, options)}
    if options.repaint:
        if "repaint" in samplers:
            raise ValueError(
                "--repaint adds a sampler named repaint, but --samplers already has one: rename it in the file"
            )
        samplers["repaint"] = RePaint()
    return samplers


def _with_steps(sampler: ImageSampler, options: Any) -> ImageSampler:
    """Set the number of steps to --steps or 50; without --steps, a sampler without that argument is unchanged."""
    if options.steps is None and "steps" not in object_config.describe(sampler)["init_args"]:
        return sampler
    return with_arguments(sampler, steps=50 if options.steps is None else options.steps)


def _describe(module: Any) -> Any:
    """Return the object config of a module, or only its class if it does not keep its arguments."""
    try:
        return object_config.describe(module)
    except TypeError:
        return {"class_path": object_config.class_path(type(module))}


def _parser() -> Any:
    parser = command_parser("evaluate", DESCRIPTION)
    add_run_arguments(parser)
    parser.add_argument("--inpainting", action="store_true", help="evaluate inpainting")
    parser.add_argument("--masks", type=str, default="", help=f"masks, some of {','.join(MASKS)} (default: all)")
    parser.add_argument("--pixel_masks", action="store_true", help=PIXEL_MASKS)
    parser.add_argument("--samplers", type=dict[str, ImageSampler] | None, sub_configs=True, help=SAMPLERS)
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
    parser.add_argument("--features", type=Features | None, sub_configs=True, help=FEATURES)
    parser.add_argument(
        "--reference", type=int, default=10_000, help="number of training images for the Fréchet distance"
    )
    parser.add_argument(
        "--lpips",
        type=LPIPS | None,
        sub_configs=True,
        help="LPIPS network, optionally with a weight file (default: AlexNet)",
    )
    parser.add_argument("--examples", type=int, default=3, help="number of images per mask on the contact sheet")
    parser.add_argument("--name", type=str, default="inpainting", help="name of the output files")
    return parser


SAMPLERS = """YAML file with samplers by name, such as {slow: {class_path: asyncdiff.sampling.Sampler, init_args:
{steps: 200}}} (default: the model's own, named async_path)"""
PIXEL_MASKS = """apply the masks of a latent model to pixels: a latent is known only if all of its pixels are, so that
less is known around thin strokes"""
FEATURES = """feature extractor of the Fréchet distance: a class of asyncdiff.evaluation, a class of your own, or a
YAML file with one (default: BackboneFeatures, pooled SqueezeNet features; the result is not FID)"""
