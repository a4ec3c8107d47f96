"""`python -m asyncdiff evaluate RUN --likelihood`: numbers of a trained model."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm.auto import tqdm

from asyncdiff import paths as path_families
from asyncdiff import recipe
from asyncdiff.checkpoints import read_checkpoint
from asyncdiff.checks import at_least
from asyncdiff.commands.experiment import Experiment
from asyncdiff.commands.parsing import command_parser
from asyncdiff.evaluation.path_likelihoods import STANDARD_PATHS, PathBounds, PathLikelihoods, check_labels
from asyncdiff.likelihood import CategoricalDecoder, Decoder
from asyncdiff.masks import Mask
from asyncdiff.spacings import FluxSpacing

DESCRIPTION = """Bits per dimension of a run's model on held-out images, along several noise paths.

The bound on -log p is the same on every path for a perfect model; how far the paths lie apart, the path gap, says how
far the network is from one consistent joint score. Images and noise are the same along all paths."""


def main(args: Sequence[str]) -> None:
    """Read the words, measure, print the table and write what it was made of."""
    parser = _parser()
    given = parser.parse_args(args)
    if not given.likelihood:
        raise ValueError("--likelihood must be given, it is what can be evaluated so far: add it")
    options = parser.instantiate(given)
    at_least("--points", options.points, 2, "64 is usual")
    at_least("--batch_size", options.batch_size, 1, "set the images that go through the network together")
    if options.images is not None:
        at_least("--images", options.images, 2, "a standard error needs two images")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device must be one that this machine has, got {options.device}: use cpu")
    run = Run(options.run, options.ckpt_path)
    output = _folder(options.output or run.folder / "evaluation")
    model, data = run.model(options.weights).to(options.device), run.data(["asyncdiff", "datamodules", *options.allow])
    check_labels(model, getattr(data, "classes", None), told=options.labels)
    decoder = options.decoder or CategoricalDecoder(int(getattr(data, "values", 256)))
    spacing = FluxSpacing(options.variance, model.process)
    bounds = PathBounds(options.paths or STANDARD_PATHS, options.points, decoder, options.mask, spacing, options.t_min)
    stamp = {
        "checkpoint": str(run.checkpoint),
        "step": run.checkpoint_of("global_step", 0),
        "weights": "ema" if options.weights != "raw" and run.checkpoint_of("ema", None) else "raw",
        "data": type(data).__name__,
        "split": options.split,
        "seed": options.seed,
        "points": options.points,
        "floors": bounds.floors(model.process),
        "labels": bool(options.labels and model.classes),
        "decoder": recipe.describe(decoder),
        "mask": recipe.describe(options.mask),
        "spacing": recipe.describe(spacing),
        "paths": {name: recipe.describe(path) for name, path in bounds.paths.items()},
    }
    summary = measure(model, data, bounds, options)
    print(summary.table())
    _write(output, options.name, summary, stamp)


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

    def checkpoint_of(self, key: str, default: Any) -> Any:
        """What the checkpoint holds under a key."""
        return read_checkpoint(self.checkpoint).get(key, default)

    def model(self, weights: Literal["auto", "ema", "raw"]) -> Any:
        """The model of the checkpoint."""
        from asyncdiff.module import AsyncDiffusion  # late: it loads Lightning

        return AsyncDiffusion.load_from_checkpoint(self.checkpoint, weights=weights)

    def data(self, allow: Sequence[str]) -> Any:
        """The run's data module; only classes of the packages in `allow` are imported."""
        file = self.folder / "config.yaml" if self.given.is_dir() else self.given
        if not file.is_file():
            raise FileNotFoundError(f"RUN must be a run directory or its config.yaml, got {self.given}: no {file}")
        return Experiment(file).data(allow)


@torch.no_grad()
def measure(model: Any, data: Any, bounds: PathBounds, options: Any) -> PathLikelihoods:
    """The bounds of `options.images` images of the split, spread evenly over it."""
    from asyncdiff.callbacks.held_out import spread

    images = data.dataset(options.split).plain()
    indices = spread(images, options.images)
    sample = images.__getitems__(spread(images, 4))["image"]
    if tuple(sample.shape[1:]) != model.shape:
        raise ValueError(
            f"images must have the model's shape {model.shape}, got {tuple(sample.shape[1:])}: other data?"
        )
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
    parser.add_argument(
        "--seed", type=int, default=0, help="image i of the split is measured with the noise of seed + i"
    )
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--device", type=str, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path | None, help="folder of the JSON card and the figure; RUN/evaluation")
    parser.add_argument("--name", type=str, default="likelihood", help="of both files")
    parser.add_argument("--allow", type=list[str], default=[], help="packages whose data modules may be imported")
    return parser


PATHS = """a YAML file of names with path classes, {spiral: {class_path: asyncdiff.paths.Ordered, init_args: ...}}; by
default synchronous, async_patch, wavefront (overlap 0.5) and raster (strict)"""


def _folder(path: Path) -> Path:
    """The folder, made now: an evaluation is not to be lost for want of it."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"--output must be a folder, got the file {path}: name another")
    path.mkdir(parents=True, exist_ok=True)
    return path


def _write(folder: Path, name: str, summary: PathLikelihoods, stamp: dict[str, Any]) -> None:
    from asyncdiff.plots.bit_figure import bit_figure
    from asyncdiff.plots.style import save

    card, figure = folder / f"{name}.json", folder / f"{name}.png"
    card.write_text(json.dumps({"protocol": stamp, **summary.card()}, indent=2))
    save(bit_figure(summary), figure)
    print(f"numbers: {card}\nwhere the bits are: {figure}")
