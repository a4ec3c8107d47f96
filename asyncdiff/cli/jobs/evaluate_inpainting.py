"""Compare samplers by the quality and cost of inpainting, and write a table, a result card and a contact sheet."""

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
from asyncdiff.checkpoints.atomic_files import write_atomically
from asyncdiff.cli.commands.evaluate import Run
from asyncdiff.cli.commands.shared.options import choose_device, with_arguments
from asyncdiff.cli.jobs.distributed import Ranks
from asyncdiff.cli.jobs.evaluated_model import EvaluatedModel, check_shape, load_data
from asyncdiff.cli.jobs.extract_features import prepare
from asyncdiff.cli.jobs.image_sources import RealImages
from asyncdiff.denoising.denoiser import Denoiser
from asyncdiff.devices import to_device
from asyncdiff.evaluation.features.base import Features
from asyncdiff.evaluation.features.lpips import LPIPS, BackboneFeatures, upsampling_factor
from asyncdiff.evaluation.frechet import FrechetDistance
from asyncdiff.evaluation.held_out_images import evenly_spaced
from asyncdiff.evaluation.inpainting_benchmark import (
    InpaintingBenchmark,
    InpaintingResults,
    ValidationImages,
    mask_fractions,
)
from asyncdiff.evaluation.result_card import make_card
from asyncdiff.model import DiffusionModel
from asyncdiff.noise.masks import Mask, OnPixels, mask_by_name
from asyncdiff.sampling.engine import device_of
from asyncdiff.sampling.repaint import RePaint
from asyncdiff.sampling.samplers import ImageSampler
from asyncdiff.shapes import check_pixels

Tile = Float[Tensor, "3 height width"]


def evaluate(run: Run, masks: Sequence[str], metrics: Sequence[str]) -> None:
    """Inpaint as the options of `evaluate --inpainting` ask for, print the table, and write the files."""
    options = run.options
    choose_device(options)
    loaded = EvaluatedModel.load(run, load_data(run), options.device)
    model, data = loaded.model, loaded.data
    by_name = {name: mask_by_name(name) for name in masks}
    if options.pixel_masks:
        by_name = on_pixels(by_name, model)
    samplers = _samplers(model.sampler, options)
    images = validation_images(model, data, options)
    bench = InpaintingBenchmark(
        lpips=(options.lpips or LPIPS()).to(options.device) if "lpips" in metrics else None,
        frechet=reference(data, loaded, options) if "frechet" in metrics else None,
        rounds=options.seeds,
        seed=options.seed,
        batch_size=options.batch_size,
        decode=loaded.decode_exactly,
        context=model.sampling_context,
    )
    comparison = Comparison(model.denoiser, images, bench, by_name, samplers)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"the Fréchet distance of \d+")  # for few images; the table mentions it
        results = comparison.evaluate()
    print(results.table())
    output = run.output()
    card, table = output / f"{options.name}.json", output / f"{options.name}.md"
    protocol = loaded.protocol() | comparison.protocol(results)
    content = make_card(protocol, results.metrics(), **results.card())
    write_atomically(card, [json.dumps(content, indent=2).encode()])
    write_atomically(table, [f"{results.table()}\n".encode()])
    print(f"result card: {card}\ntable: {table}")
    if options.examples:
        sheet = output / f"{options.name}.png"
        comparison.write_contact_sheet(sheet, options.examples)
        print(f"contact sheet: {sheet}")


def on_pixels(masks: Mapping[str, Mask], model: DiffusionModel) -> dict[str, Mask]:
    """Convert pixel masks to latent masks; raise ValueError for a pixel model, or if no latent would be known."""
    if model.codec is None:
        raise ValueError("--pixel_masks needs a latent model; masks of this pixel model cover pixels already: drop it")
    latent_masks: dict[str, Mask] = {name: OnPixels(mask, model.codec.factor) for name, mask in masks.items()}
    for name, mask in latent_masks.items():
        if not mask.seed_dependent and not mask(*model.shape[1:]).any():
            raise ValueError(f"--masks {name} leaves no latent known with --pixel_masks: choose other masks")
    return latent_masks


def validation_images(model: DiffusionModel, data: Any, options: Any) -> ValidationImages:
    """Load the images to inpaint, evenly spaced over the split, with their labels if --labels is true."""
    images = data.dataset(options.split).plain()
    batch = images.__getitems__(evenly_spaced(len(images), options.images))
    check_shape(model, batch["image"])
    check_pixels("images", batch["image"])
    labels = batch["label"].tolist() if options.labels and model.classes else None
    return ValidationImages(to_device(batch["image"], model.device), batch["index"].tolist(), labels)


def reference(data: Any, loaded: EvaluatedModel, options: Any) -> FrechetDistance:
    """Return a FrechetDistance with statistics of training images, evenly spaced and decoded if they are latents."""
    features = (options.features or BackboneFeatures()).to(options.device)
    metric = FrechetDistance(prepare(features, data, loaded.decode_exactly, options))
    codec, size = loaded.model.codec, options.batch_size
    source = RealImages(data, "train", options.reference, decode=loaded.decode_exactly, codec=codec, batch_size=size)
    total, batches = source.batches(Ranks(0, 1, torch.device(options.device)))
    for _, images in tqdm(batches, desc="reference", total=total, unit="batch", leave=False, disable=None):
        metric.update(images, real=True)
    return metric


@dataclass(frozen=True)
class Comparison:
    """Inpainting of the same images with every sampler under every mask."""

    denoiser: Denoiser
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
            frechet_real=bench.frechet_of_real(images, device_of(self.denoiser)),
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
            "lpips": object_config.describe_or_class(bench.lpips),
            "enlarged": upsampling_factor(*bench.decode(images.images[:1]).shape[2:]),
        }

    def write_contact_sheet(self, file: Path, examples: int) -> None:
        """Write a contact sheet with a row per mask: known pixels, true image and results of a few examples."""
        from asyncdiff.callbacks.inpainting_grid import paint_unknown
        from asyncdiff.callbacks.periodic_image import tile_images
        from asyncdiff.evaluation.figures.style import save

        images, decode = self.images, self.bench.decode
        subset = images.select(evenly_spaced(len(images.images), examples))
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
    if options.steps is None and not hasattr(sampler, "steps"):
        return sampler
    return with_arguments(sampler, steps=50 if options.steps is None else options.steps)
