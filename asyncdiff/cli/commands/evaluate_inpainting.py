"""`python -m asyncdiff evaluate RUN --inpainting`: how well and how fast samplers complete held-out images."""

import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from asyncdiff.checkpoints import object_config
from asyncdiff.checks import at_least
from asyncdiff.cli import trusted_packages
from asyncdiff.cli.commands.evaluate import Run, add_run, check_shape
from asyncdiff.cli.commands.options import command_parser
from asyncdiff.evaluation.features.base import Features
from asyncdiff.evaluation.features.lpips import LPIPS, BackboneFeatures, enlargement
from asyncdiff.evaluation.frechet import FrechetDistance
from asyncdiff.evaluation.inpainting_benchmark import HeldOut, InpaintingBenchmark, InpaintingResults, shares
from asyncdiff.evaluation.likelihood_by_path import check_labels
from asyncdiff.evaluation.result_card import card_of
from asyncdiff.noise.masks import MASKS, Known, Mask, named
from asyncdiff.sampling import (
    adaptive,  # noqa: F401  samplers to name without the module
    look_ahead,  # noqa: F401  samplers to name without the module
)
from asyncdiff.sampling.repaint import RePaint
from asyncdiff.sampling.samplers import ImageSampler

DESCRIPTION = """Held-out images completed under several masks by several samplers: how far they lie from real images
(Fréchet distance) and from the truth (LPIPS), how much the results of one image differ, and what they cost.

Masks, images and noise are the same for all samplers. Labels are not told unless --labels is true. Of a model of
latents masks are of latents, unless --pixel_masks is given, and images are decoded, true ones, too: what the
autoencoder loses does not show."""
METRICS = ("frechet", "lpips")

Picture = Float[Tensor, "3 height width"]


class OnPixels(Mask):
    """Masks of latents, drawn on their pixels by another rule: a latent is known where all of its pixels are.

    Args:
        mask: the rule.
        factor: pixels per latent, each way.
    """

    def __init__(self, mask: Mask, factor: int):
        self.mask = mask
        self.factor = factor
        self.drawn = mask.drawn

    def __call__(self, height: int, width: int, *, seed: int = 0) -> Known:
        """True = known, for `height` x `width` latents."""
        pixels = self.mask(height * self.factor, width * self.factor, seed=seed)
        return pixels.reshape(height, self.factor, width, self.factor).all(3).all(1)


def main(args: Sequence[str]) -> None:
    """Read the words, measure, print the table and write it, what it was made of and what the images look like."""
    parser = _parser()
    options = parser.instantiate(parser.parse_args(args))
    masks, metrics = _masks(options.masks), _metrics(options)
    _check(options)
    run = Run.of(options)
    output = run.output(options.output)
    model, data = run.model(options.weights).to(options.device), run.data()
    check_labels(model, getattr(data, "classes", None), told=options.labels)
    if options.pixel_masks:
        masks = on_pixels(masks, model)
    samplers = _samplers(model.sampler, options)
    given = held_out(model, data, options)
    bench = InpaintingBenchmark(
        lpips=(options.lpips or LPIPS()).to(options.device) if "lpips" in metrics else None,
        frechet=reference(data, model.decode, options) if "frechet" in metrics else None,
        rounds=options.seeds,
        seed=options.seed,
        batch_size=options.batch_size,
        decode=model.decode,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"the Fréchet distance of \d+")  # of few images: the table says so
        found = measure(model.denoiser, given, bench, masks, samplers)
    stamp = run.stamp(options, data) | _protocol(model, given, bench, found, masks, samplers, options)
    print(found.table())
    _write(output, options.name, found, stamp)
    draw(output / f"{options.name}.png", model.denoiser, given, bench, masks, samplers, examples=options.examples)


def on_pixels(masks: Mapping[str, Mask], model: Any) -> dict[str, Mask]:
    """The masks drawn on the pixels of the model's latents; ValueError if it has none, or no latent would be known."""
    if model.codec is None:
        raise ValueError("--pixel_masks must be left out for a model of pixels, whose masks are of pixels anyway")
    drawn: dict[str, Mask] = {name: OnPixels(mask, model.codec.factor) for name, mask in masks.items()}
    for name, mask in drawn.items():
        if not mask.drawn and not mask(*model.shape[1:]).any():
            raise ValueError(f"--masks must leave a latent known with --pixel_masks, got {name}: name others")
    return drawn


def held_out(model: Any, data: Any, options: Any) -> HeldOut:
    """The images to complete, spread evenly over the split, with their labels where those are told."""
    from asyncdiff.callbacks.validation_images import spread

    images = data.dataset(options.split).plain()
    batch = images.__getitems__(spread(images, options.images))
    check_shape(model, batch["image"])
    told = options.labels and model.classes
    return HeldOut(batch["image"], batch["index"].tolist(), batch["label"] if told else None)


def reference(data: Any, decode: Callable[[Tensor], Tensor], options: Any) -> FrechetDistance:
    """The Fréchet distance from images of the training split, spread evenly over it, decoded where they are latents."""
    from asyncdiff.callbacks.validation_images import spread

    features = (options.features or BackboneFeatures()).to(options.device)
    batches = data.images("train", options.batch_size)
    features.prepare({**batch, "image": decode(batch["image"])} for batch in batches)
    metric = FrechetDistance(features).to(options.device)
    images = data.dataset("train").plain()
    indices = spread(images, options.reference)
    starts = range(0, len(indices), options.batch_size)
    for first in tqdm(starts, desc="reference", unit="batch", leave=False, disable=None):
        batch = images.__getitems__(indices[first : first + options.batch_size])
        metric.update(decode(batch["image"].to(options.device)), real=True)
    return metric


def measure(
    denoiser: Any,
    given: HeldOut,
    bench: InpaintingBenchmark,
    masks: Mapping[str, Mask],
    samplers: Mapping[str, ImageSampler],
) -> InpaintingResults:
    """Every mask set completed by every sampler."""
    grid = denoiser.grid((given.images.shape[2], given.images.shape[3]))
    rows = []
    total = len(masks) * len(samplers) * len(given.images) * bench.rounds
    with tqdm(total=total, unit="image", leave=False, disable=None) as bar:
        for mask in masks.items():
            for sampler in samplers.items():
                bar.set_description(f"{mask[0]}, {sampler[0]}")
                rows.append(bench.completion(denoiser, given, mask, sampler, done=bar.update))
    metric, lpips = bench.frechet, bench.lpips
    return InpaintingResults(
        rows,
        {name: shares(given.masks(mask), grid) for name, mask in masks.items()},
        images=len(given.images),
        rounds=bench.rounds,
        floor=bench.floor(given, next(denoiser.parameters()).device),
        lpips=None if lpips is None else str(lpips.name),
        features=None if metric is None else str(metric.features.name),
        dim=0 if metric is None else metric.dim,
        reference=0 if metric is None else int(torch.as_tensor(metric.real_n)),
    )


def draw(
    file: Path,
    denoiser: Any,
    given: HeldOut,
    bench: InpaintingBenchmark,
    masks: Mapping[str, Mask],
    samplers: Mapping[str, ImageSampler],
    *,
    examples: int,
) -> None:
    """Write a sheet with a row per mask set: some of the images as given, as they were, and as completed."""
    if not examples:
        return
    from asyncdiff.callbacks.inpainting_grid import masked
    from asyncdiff.callbacks.periodic_image import tiles
    from asyncdiff.callbacks.validation_images import spread
    from asyncdiff.evaluation.figures.style import save

    chosen = list(spread(given.images, examples))
    labels = None if given.labels is None else given.labels[chosen]
    some = HeldOut(given.images[chosen], [given.indices[i] for i in chosen], labels)
    truth = bench.decode(some.images).cpu().expand(-1, 3, -1, -1)
    rows: dict[str, list[Picture]] = {}
    for name, mask in tqdm(masks.items(), desc="pictures", unit="mask", leave=False, disable=None):
        known = some.masks(mask)
        drawn = [bench.completed(denoiser, some, known, sampler) for sampler in samplers.values()]
        results = [bench.decode(result).cpu() for result in drawn]
        shown = torch.stack([masked(truth, known), truth, *(result.expand_as(truth) for result in results)], dim=1)
        rows[name] = [tiles(example, columns=len(example)) for example in shown]
    save(_sheet(rows, ["given", "truth", *samplers]), file)
    print(f"pictures: {file}")


def _sheet(rows: Mapping[str, Sequence[Picture]], heads: Sequence[str]) -> Any:
    """The pictures of the examples beside each other, a row per mask set, under the heads of their columns."""
    from asyncdiff.evaluation.figures.style import FAINT, Sheet, styled

    tile, label, head, gap = 0.8, 1.2, 0.35, 0.15  # inches
    width = tile * len(heads)
    examples = len(next(iter(rows.values())))
    with styled():
        sheet = Sheet(label + (width + gap) * examples, head + tile * len(rows) + gap)
        for k in range(examples):
            left = label + (width + gap) * k
            for i, text in enumerate(heads):
                sheet.text(left + tile * (i + 0.5), head - 0.06, text, ha="center", va="bottom", color=FAINT)
            for row, (name, pictures) in enumerate(rows.items()):
                top = head + tile * row
                if k == 0:
                    sheet.text(0.1, top + tile / 2, name.replace("_", " "), va="center")
                axes = sheet.axes(left, top, width, tile)
                axes.imshow(pictures[k].permute(1, 2, 0).numpy(), aspect="auto", interpolation="nearest")
                axes.set_axis_off()
    return sheet.figure


def _masks(text: str) -> dict[str, Mask]:
    names = _words("masks", text, MASKS)
    return {name: named(name) for name in names}


def _metrics(options: Any) -> list[str]:
    metrics = _words("metrics", options.metrics, METRICS)
    for metric, option in (("frechet", "features"), ("lpips", "lpips")):
        if metric not in metrics and options[option] is not None:
            raise ValueError(f"--{option} must be left out where --metrics names no {metric}: name it, too")
    for name in metrics:
        if name not in METRICS:
            raise ValueError(f"--metrics must be named {', '.join(METRICS)}, got {name}: choose among them")
    return metrics


def _words(name: str, text: str, usual: Iterable[str]) -> list[str]:
    words = [word.strip() for word in text.split(",")] if text else list(usual)
    if len(set(words)) < len(words):
        raise ValueError(f"--{name} must differ, got {text}: name each once")
    return words


def _check(options: Any) -> None:
    at_least("--images", options.images, 2, "a covariance needs two images, a reliable one many more than dimensions")
    at_least("--seeds", options.seeds, 1, "2 or more show how much the results of one image differ")
    at_least("--reference", options.reference, 2, "a covariance needs two images")
    at_least("--examples", options.examples, 0, "0 draws no pictures")
    if options.samplers is not None and options.steps is not None:
        raise ValueError("--steps must be left out with --samplers, which have their own: set them in the file")


def _samplers(own: ImageSampler, options: Any) -> dict[str, ImageSampler]:
    """The samplers of the file, or the model's own; and RePaint, if it is asked for."""
    samplers = dict(options.samplers) if options.samplers else {"async_path": _with_steps(own, options)}
    if options.repaint:
        if "repaint" in samplers:
            raise ValueError("--repaint must be left out where --samplers names a repaint: rename one")
        samplers["repaint"] = RePaint()
    return samplers


def _with_steps(sampler: ImageSampler, options: Any) -> ImageSampler:
    """The sampler with another number of steps, 50 unless it is told; one without such a number as it is."""
    described = object_config.describe(sampler)
    if "steps" not in described["init_args"]:
        if options.steps is not None:
            raise ValueError(f"--steps must be left out for {type(sampler).__name__}, which has no steps to set")
        return sampler
    described["init_args"]["steps"] = 50 if options.steps is None else options.steps
    built: ImageSampler = object_config.build(described, ["asyncdiff", *trusted_packages.extra()])
    return built


def _protocol(
    model: Any,
    given: HeldOut,
    bench: InpaintingBenchmark,
    found: InpaintingResults,
    masks: Mapping[str, Mask],
    samplers: Mapping[str, ImageSampler],
    options: Any,
) -> dict[str, Any]:
    """What the numbers were made of, beside what `Run.stamp` tells."""
    features = None if bench.frechet is None else cast(Features, bench.frechet.features)
    return {
        "measurement": "inpainting",
        "images": len(given.images),
        "image_size": list(given.images.shape[1:]),
        "results_per_image": bench.rounds,
        "labels": given.labels is not None,
        "batch_size": bench.batch_size,
        "masks": {name: object_config.describe(mask) | {"drawn_per_image": mask.drawn} for name, mask in masks.items()},
        "samplers": {name: object_config.describe(sampler) for name, sampler in samplers.items()},
        "features": None if features is None else features.stamp(),
        "dimensions": found.dim,
        "reference": {"split": "train", "images": found.reference} if features is not None else None,
        "lpips": _described(bench.lpips),
        "enlarged": enlargement(*bench.decode(given.images[:1]).shape[2:]),
    }


def _described(module: Any) -> Any:
    """A recipe; of a module that does not keep its arguments the class."""
    try:
        return object_config.describe(module)
    except TypeError:
        return {"class_path": object_config.class_path(type(module))}


def _parser() -> Any:
    parser = command_parser("evaluate", DESCRIPTION)
    add_run(parser)
    parser.add_argument("--inpainting", action="store_true", help="completed images")
    parser.add_argument("--masks", type=str, default="", help=f"some of {','.join(MASKS)}; all by default")
    parser.add_argument("--pixel_masks", action="store_true", help=PIXEL_MASKS)
    parser.add_argument("--samplers", type=dict[str, ImageSampler] | None, sub_configs=True, help=SAMPLERS)
    parser.add_argument("--steps", type=int | None, help="of the model's own sampler; 50 by default")
    parser.add_argument("--repaint", action="store_true", help="add RePaint with 250 steps and 10 jumps of 10, too")
    parser.add_argument("--images", type=int, default=100, help="held-out images, spread evenly over the split")
    parser.add_argument("--seeds", type=int, default=1, help="results per image")
    parser.add_argument("--seed", type=int, default=0, help="of the results' noise; masks do not depend on it")
    parser.add_argument("--labels", type=bool, default=False, help="tell the network the classes, if it knows any")
    parser.add_argument("--metrics", type=str, default="", help="frechet,lpips by default")
    parser.add_argument("--features", type=Features | None, sub_configs=True, help=FEATURES)
    parser.add_argument("--reference", type=int, default=10_000, help="training images for the Fréchet distance")
    parser.add_argument("--lpips", type=LPIPS | None, sub_configs=True, help="AlexNet by default; may name a file")
    parser.add_argument("--examples", type=int, default=3, help="images per mask set on the sheet of pictures")
    parser.add_argument("--name", type=str, default="inpainting", help="of all files")
    return parser


SAMPLERS = """a YAML file of names with sampler classes, {slow: {class_path: asyncdiff.sampling.Sampler, init_args:
{steps: 200}}}; by default async_path, the model's own"""
PIXEL_MASKS = """of a model of latents: draw masks on pixels; a latent is known where all of its pixels are, so that
less is known around thin strokes"""
FEATURES = """of the Fréchet distance: a class of asyncdiff.evaluation or your own, or a YAML file of one; by default
BackboneFeatures, the pooled ones of SqueezeNet, which is not FID"""


def _write(folder: Path, name: str, found: InpaintingResults, stamp: dict[str, Any]) -> None:
    card, table = folder / f"{name}.json", folder / f"{name}.md"
    card.write_text(json.dumps(card_of(stamp, found.metrics(), **found.card()), indent=2))
    table.write_text(found.table() + "\n")
    print(f"numbers: {card}\ntable: {table}")
