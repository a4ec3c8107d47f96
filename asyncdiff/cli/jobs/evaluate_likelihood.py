"""Compute likelihood bounds of a trained model along several noise paths, and write a result card and a figure."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from asyncdiff.checkpoints import object_config
from asyncdiff.checkpoints.atomic_files import write_atomically
from asyncdiff.cli.commands.evaluate import Run
from asyncdiff.cli.commands.shared.options import choose_device
from asyncdiff.cli.jobs.evaluated_model import EvaluatedModel, check_shape, load_data
from asyncdiff.denoising.likelihood import CategoricalDecoder
from asyncdiff.evaluation.figures.bits_figure import bits_figure
from asyncdiff.evaluation.figures.style import save
from asyncdiff.evaluation.held_out_images import evaluate_in_batches, evenly_spaced
from asyncdiff.evaluation.likelihood_by_path import STANDARD_PATHS, PathLikelihoodEvaluator, PathLikelihoods
from asyncdiff.evaluation.result_card import make_card
from asyncdiff.model import DiffusionModel
from asyncdiff.noise.progress_samplers import FluxProgress
from asyncdiff.shapes import Image, Labels


def evaluate(run: Run) -> None:
    """Compute the bounds that the options of `evaluate --likelihood` ask for, print the table, and write the files."""
    options = run.options
    choose_device(options)
    loaded = EvaluatedModel.load(run, load_data(run), options.device)
    model, data = loaded.model, loaded.data
    decoder = options.decoder or CategoricalDecoder(int(getattr(data, "values", 256)))
    progress_sampler = FluxProgress(options.variance, model.denoiser.process)
    evaluator = PathLikelihoodEvaluator(
        options.paths or STANDARD_PATHS, options.points, decoder, options.mask, progress_sampler, options.t_min
    )
    protocol = {"measurement": "likelihood", **loaded.protocol()} | {
        "points": options.points,
        "floors": evaluator.lowest_levels(model.denoiser.process),
        "labels": bool(options.labels and model.classes),
        "decoder": object_config.describe(decoder),
        "mask": object_config.describe(options.mask),
        "spacing": object_config.describe(progress_sampler),
        "paths": {name: object_config.describe(path) for name, path in evaluator.paths.items()},
    }
    likelihoods = compute_bounds(model, data, evaluator, options)
    print(likelihoods.table())
    _write(run.output(), options.name, likelihoods, protocol | {"images": likelihoods.images})


@torch.no_grad()
def compute_bounds(
    model: DiffusionModel, data: Any, evaluator: PathLikelihoodEvaluator, options: Any
) -> PathLikelihoods:
    """Compute the bounds for `options.images` images, evenly spaced over the split."""
    images = data.dataset(options.split).plain()
    indices = evenly_spaced(len(images), options.images)
    sample = images.__getitems__(evenly_spaced(len(images), 4))["image"]
    check_shape(model, sample)
    with model.sampling_context():
        evaluator.check(model.denoiser, sample.to(options.device))

    def evaluate_batch(x: Image, label: Labels | None, positions: list[int]) -> Tensor:
        return evaluator.evaluate(model.denoiser, x, label, [options.seed + position for position in positions])

    size, labels = options.batch_size, bool(options.labels and model.classes)
    batches = evaluate_in_batches(
        images,
        indices,
        evaluate_batch,
        batch_size=size,
        device=options.device,
        labels=labels,
        precision=model.precision or "float32",
    )
    bar = tqdm(batches, "likelihood", -(-len(indices) // size), unit="batch", leave=False, disable=None)
    return evaluator.summarize(torch.cat(list(bar)), model.denoiser.grid(model.shape[1:]))


def _write(folder: Path, name: str, likelihoods: PathLikelihoods, protocol: dict[str, Any]) -> None:
    card, figure = folder / f"{name}.json", folder / f"{name}.png"
    content = make_card(protocol, likelihoods.scalars(), **likelihoods.card())
    write_atomically(card, [json.dumps(content, indent=2).encode()])
    save(bits_figure(likelihoods), figure)
    print(f"result card: {card}\nfigure: {figure}")
