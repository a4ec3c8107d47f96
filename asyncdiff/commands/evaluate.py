"""`python -m asyncdiff evaluate RUN --likelihood`: numbers of a trained model."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from omegaconf import OmegaConf
from tqdm.auto import tqdm

from asyncdiff import paths as path_families
from asyncdiff import recipe
from asyncdiff.checkpoints import read_checkpoint
from asyncdiff.checks import at_least
from asyncdiff.commands.parsing import command_parser
from asyncdiff.evaluation.path_likelihoods import STANDARD_PATHS, PathBounds, PathLikelihoods
from asyncdiff.likelihood import CategoricalDecoder, Decoder, finest_level
from asyncdiff.masks import Mask
from asyncdiff.spacings import FluxSpacing

DESCRIPTION = """Bits per dimension of a run's model on held-out images, along several noise paths.

The bound on -log p is the same on every path for a perfect model; how far the paths lie apart, the path gap, says how
far the network is from one consistent joint score. Images and noise are the same along all paths."""


def main(args: Sequence[str]) -> None:
    """Read the words, measure, print the table and write what it was made of."""
    parser = _parser()
    options = parser.parse_args(args)
    if not options.likelihood:
        raise ValueError("--likelihood must be given, it is what can be evaluated so far: add it")
    built = parser.instantiate(options)
    at_least("--points", built.points, 2, "64 is usual")
    at_least("--batch_size", built.batch_size, 1, "set the images that go through the network together")
    if built.images is not None:
        at_least("--images", built.images, 2, "a standard error needs two images")
    run = Run(built.run, built.ckpt_path)
    model, data = run.model(built.weights).to(built.device), run.data()
    decoder = built.decoder or CategoricalDecoder(int(getattr(data, "values", 256)))
    spacing = FluxSpacing(built.variance, model.process)
    bounds = PathBounds(built.paths or STANDARD_PATHS, built.points, decoder, built.mask, spacing, built.t_min)
    summary = measure(model, data, bounds, built)
    print(summary.table())
    folder = Path(built.output) if built.output else run.folder / "evaluation"
    stamp = {
        "checkpoint": str(run.checkpoint),
        "step": run.step,
        "weights": built.weights,
        "split": built.split,
        "seed": built.seed,
        "points": built.points,
        "t_min": finest_level(model.process, decoder) if built.t_min is None else built.t_min,
        "labels": bool(built.labels and model.classes),
        "decoder": recipe.describe(decoder),
        "mask": recipe.describe(built.mask),
        "spacing": recipe.describe(spacing),
        "paths": {name: recipe.describe(path) for name, path in bounds.paths.items()},
    }
    _write(folder, summary, stamp)


@dataclass
class Run:
    """A run directory of train.py, or its config file.

    Attributes:
        given: the directory or the file.
        ckpt_path: another checkpoint than the last one.
    """

    given: Path
    ckpt_path: Path | None = None

    @property
    def folder(self) -> Path:
        """The run's directory."""
        return self.given if self.given.is_dir() else self.given.parent

    @property
    def checkpoint(self) -> Path:
        """The checkpoint to evaluate."""
        return self.ckpt_path or self.folder / "checkpoints" / "last.ckpt"

    @property
    def step(self) -> int:
        """Optimiser steps of the checkpoint."""
        return int(read_checkpoint(self.checkpoint).get("global_step", 0))

    def model(self, weights: Literal["auto", "ema", "raw"]) -> Any:
        """The model of the checkpoint."""
        from asyncdiff.module import AsyncDiffusion  # late: it loads Lightning

        return AsyncDiffusion.load_from_checkpoint(self.checkpoint, weights=weights)

    def data(self) -> Any:
        """The run's data module."""
        file = self.folder / "config.yaml" if self.given.is_dir() else self.given
        if not file.is_file():
            raise FileNotFoundError(f"RUN must be a run directory or its config.yaml, got {self.given}: no {file}")
        config = OmegaConf.load(file)
        node = OmegaConf.select(config, "data")
        if node is None or "class_path" not in node:
            raise ValueError(f"{file} must say what the data is, got no data.class_path: give the run's config.yaml")
        node = OmegaConf.to_container(node, resolve=True)
        # The user ran this very file: its classes are trusted.
        return recipe.build(node, allow=tuple({"asyncdiff", "datamodules", *_packages(node)}))


@torch.no_grad()
def measure(model: Any, data: Any, bounds: PathBounds, options: Any) -> PathLikelihoods:
    """The bounds of `options.images` images of the split, spread evenly over it."""
    from asyncdiff.callbacks.held_out import spread

    batch = spread(data.dataset(options.split).plain(), options.images)
    images, label = batch["image"], batch["label"] if options.labels and model.classes else None
    if tuple(images.shape[1:]) != model.shape:
        raise ValueError(
            f"images must have the model's shape {model.shape}, got {tuple(images.shape[1:])}: other data?"
        )
    rows = []
    parts = torch.arange(len(images)).split(options.batch_size)
    for part in tqdm(parts, desc="likelihood", unit="batch", leave=False, disable=None):
        told = None if label is None else label[part].to(options.device)
        seeds = [options.seed + i for i in part.tolist()]
        rows.append(bounds.rows(model.denoiser, images[part].to(options.device), told, seeds).cpu())
    return bounds.summary(torch.cat(rows), model.denoiser.grid(model.shape[1:]))


def _parser() -> Any:
    parser = command_parser("evaluate", DESCRIPTION)
    parser.add_argument("run", type=Path, help="a run directory of train.py, or its config.yaml")
    parser.add_argument("--likelihood", action="store_true", help="the bound on -log p along several paths")
    parser.add_argument("--paths", type=dict[str, path_families.Path] | None, sub_configs=True, help=PATHS)
    parser.add_argument("--images", type=int | None, help="number of images; all of the split by default")
    parser.add_argument("--split", type=Literal["val", "test"], default="val")
    parser.add_argument("--points", type=int, default=64, help="evaluations of the network per image and path")
    parser.add_argument("--decoder", type=Decoder | None, help="of the pixels; categorical with the data's values")
    parser.add_argument("--mask", type=Mask | None, help="what is known: bounds -log p(unknown | known)")
    parser.add_argument("--labels", type=bool, default=True, help="tell the network the classes, where it knows any")
    parser.add_argument("--t_min", type=float | None, help="floor of the paths; what suits the decoder by default")
    parser.add_argument("--variance", type=float, default=0.1, help="of FluxSpacing, the importance sampling of s")
    parser.add_argument("--ckpt_path", type=Path | None, help="RUN/checkpoints/last.ckpt by default")
    parser.add_argument("--weights", type=Literal["auto", "ema", "raw"], default="auto")
    parser.add_argument("--seed", type=int, default=0, help="image i is measured with the noise of seed + i")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--device", type=str, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path | None, help="folder of the JSON card and the figure; RUN/evaluation")
    return parser


PATHS = """a YAML file of names with path classes, {spiral: {class_path: asyncdiff.paths.Ordered, init_args: ...}}; by
default synchronous, async_patch, wavefront (overlap 0.5) and raster (strict)"""


def _write(folder: Path, summary: PathLikelihoods, stamp: dict[str, Any]) -> None:
    from asyncdiff.plots.bit_figure import bit_figure
    from asyncdiff.plots.style import save

    folder.mkdir(parents=True, exist_ok=True)
    card = folder / "likelihood.json"
    card.write_text(json.dumps({"protocol": stamp, **summary.card()}, indent=2))
    figure = folder / "bits.png"
    save(bit_figure(summary), figure)
    print(f"numbers: {card}\nwhere the bits are: {figure}")


def _packages(node: Any) -> set[str]:
    """The packages that class paths in a configuration name."""
    if isinstance(node, dict):
        own = {node["class_path"].partition(".")[0]} if isinstance(node.get("class_path"), str) else set()
        return own.union(*map(_packages, node.values()))
    return set().union(*map(_packages, node)) if isinstance(node, list) else set()
