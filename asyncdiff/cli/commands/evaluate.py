"""`python -m asyncdiff evaluate RUN --samples | --likelihood | --inpainting`: numbers of a trained model."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from asyncdiff.checkpoints import choose, read_checkpoint
from asyncdiff.checkpoints.export import is_export, weight_file
from asyncdiff.checks import at_least
from asyncdiff.cli import trusted_packages
from asyncdiff.cli.commands.experiment_file import Experiment
from asyncdiff.cli.commands.options import CODEC, add_device, add_weights, with_codec
from asyncdiff.evaluation.features.weights import file_sha256
from asyncdiff.evaluation.result_card import software
from asyncdiff.latents import Codec

# What can be measured, by the word that asks for it: the module, which has a function `main(args)`, and what it is.
MEASUREMENTS = {
    "--samples": ("asyncdiff.cli.commands.evaluate_samples", "generated images: FID, KID, precision, recall and more"),
    "--likelihood": ("asyncdiff.cli.commands.evaluate_likelihood", "bits per dimension along several noise paths"),
    "--inpainting": ("asyncdiff.cli.commands.evaluate_inpainting", "completed images: Fréchet distance, LPIPS, cost"),
}


def main(args: Sequence[str]) -> None:
    """Hand the words to the measurement that they ask for."""
    chosen = [word for word in MEASUREMENTS if word in args]
    if not chosen and {"-h", "--help"} & set(args):
        print(overview())
        return
    if len(chosen) != 1:
        given = " and ".join(chosen) or "none"
        raise ValueError(f"one of {', '.join(MEASUREMENTS)} must be given, got {given}: each has a --help of its own")
    importlib.import_module(MEASUREMENTS[chosen[0]][0]).main(args)


def overview() -> str:
    """The measurements with a line each."""
    lines = [f"  {word:14}{summary}" for word, (_, summary) in MEASUREMENTS.items()]
    usage = ["usage: python -m asyncdiff evaluate RUN MEASUREMENT ...", "", *lines, ""]
    return "\n".join([*usage, "python -m asyncdiff evaluate MEASUREMENT --help tells the rest."])


def add_run(parser: Any, splits: Any = Literal["val", "test"], split: str = "val") -> None:
    """Add the options that all measurements have: which model, on what of the `splits`, and where to."""
    parser.add_argument("run", type=Path, help="a run directory of train.py, its config.yaml, or an exported folder")
    parser.add_argument("--split", type=splits, default=split)
    parser.add_argument("--ckpt_path", type=Path | None, help="RUN/checkpoints/last.ckpt by default")
    add_weights(parser)
    parser.add_argument("--batch_size", type=int, default=128)
    add_device(parser)
    parser.add_argument("--output", type=Path | None, help="folder of what is written; RUN/evaluation by default")
    parser.add_argument("--codec", type=Codec | None, sub_configs=True, help=CODEC)


@dataclass
class Run:
    """A run directory of train.py, or its config file.

    Attributes:
        given: the directory or the file.
        ckpt_path: another checkpoint than the last one.
        codec: another than the checkpoint's.
    """

    given: Path
    ckpt_path: Path | None = None
    codec: Codec | None = None

    @classmethod
    def of(cls, options: Any) -> "Run":
        """The run that the options of `add_run` name, checked."""
        at_least("--batch_size", options.batch_size, 1, "set the images that go through the network together")
        if options.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"--device must be one that this machine has, got {options.device}: use cpu")
        return cls(options.run, options.ckpt_path, options.get("codec"))

    @property
    def folder(self) -> Path:
        """The run's directory."""
        return self.given if self.given.is_dir() else self.given.parent

    @property
    def checkpoint(self) -> Path:
        """The checkpoint or export to evaluate."""
        if is_export(self.folder) and self.ckpt_path is None:
            return self.folder
        return self.ckpt_path or self.folder / "checkpoints" / "last.ckpt"

    def checkpoint_of(self, key: str, default: Any) -> Any:
        """What the checkpoint holds under a key."""
        return read_checkpoint(self.checkpoint).get(key, default)

    def model(self, weights: Literal["auto", "ema", "raw"]) -> Any:
        """The model of the checkpoint."""
        from asyncdiff.training.module import AsyncDiffusion  # late: it loads Lightning

        allow = ["asyncdiff", *trusted_packages.extra()]
        model = AsyncDiffusion.load_from_checkpoint(self.checkpoint, weights=weights, allow=allow)
        with_codec(model, self.codec)
        return model

    def data(self) -> Any:
        """The run's data module."""
        file = self.folder / "config.yaml" if self.given.is_dir() else self.given
        if not file.is_file():
            raise FileNotFoundError(f"RUN must be a run directory or its config.yaml, got {self.given}: no {file}")
        return Experiment(file).data()

    def output(self, given: Path | None) -> Path:
        """The folder to write to, made now: an evaluation is not to be lost for want of it."""
        path = given or self.folder / "evaluation"
        if path.exists() and not path.is_dir():
            raise ValueError(f"--output must be a folder, got the file {path}: name another")
        path.mkdir(parents=True, exist_ok=True)
        return path

    def stamp(self, options: Any, data: Any) -> dict[str, Any]:
        """What the numbers are of and by whom they were measured, for a card."""
        held = read_checkpoint(self.checkpoint)
        return {
            "checkpoint": str(self.checkpoint),
            "checkpoint_sha256": file_sha256(weight_file(self.checkpoint)),
            "step": held.get("global_step", 0),
            "weights": choose(held, options.weights, self.checkpoint)[1],
            "data": type(data).__name__,
            "split": options.split,
            "seed": options.seed,
            "dtype": next(str(v.dtype) for v in held["state_dict"].values() if v.is_floating_point()),
            **software(options.device),
        }


def check_shape(model: Any, sample: torch.Tensor) -> None:
    """Raise ValueError unless images (n, c, h, w) have the model's shape."""
    if tuple(sample.shape[1:]) != model.shape:
        raise ValueError(
            f"images must have the model's shape {model.shape}, got {tuple(sample.shape[1:])}: other data?"
        )
