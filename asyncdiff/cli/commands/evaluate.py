"""`python -m asyncdiff evaluate RUN --samples | --likelihood | --inpainting`: measurements of a trained model."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from asyncdiff.checkpoints import choose_weights, read_checkpoint
from asyncdiff.checkpoints.export import is_export, weight_file
from asyncdiff.checks import at_least
from asyncdiff.cli import trusted_packages
from asyncdiff.cli.commands.shared.experiment_file import Experiment
from asyncdiff.cli.commands.shared.options import CKPT_PATH, CODEC, add_device, add_weights, set_codec
from asyncdiff.evaluation.features.weights import file_sha256
from asyncdiff.evaluation.result_card import software
from asyncdiff.latents import Codec

# Module and summary of every measurement, by the option that selects it; the module has a function `main(argv)`.
MEASUREMENTS = {
    "--samples": ("asyncdiff.cli.commands.evaluate_samples", "samples: FID, KID, precision, recall and more"),
    "--likelihood": ("asyncdiff.cli.commands.evaluate_likelihood", "bits per dimension along several noise paths"),
    "--inpainting": ("asyncdiff.cli.commands.evaluate_inpainting", "inpainting: Fréchet distance, LPIPS, cost"),
}


def main(argv: Sequence[str]) -> None:
    """Run the measurement that the command line selects."""
    selected = [option for option in MEASUREMENTS if option in argv]
    if not selected and {"-h", "--help"} & set(argv):
        print(overview())
        return
    if len(selected) != 1:
        given = " and ".join(selected) or "none"
        raise ValueError(f"one of {', '.join(MEASUREMENTS)} must be given, got {given}: each has its own --help")
    importlib.import_module(MEASUREMENTS[selected[0]][0]).main(argv)


def overview() -> str:
    """Return the help text: every measurement with its summary."""
    lines = [f"  {option:14}{summary}" for option, (_, summary) in MEASUREMENTS.items()]
    usage = ["usage: python -m asyncdiff evaluate RUN MEASUREMENT ...", "", *lines, ""]
    return "\n".join([*usage, "Run python -m asyncdiff evaluate MEASUREMENT --help for the options of a measurement."])


def add_run_arguments(parser: Any, splits: Any = Literal["val", "test"], split: str = "val") -> None:
    """Add the arguments that all measurements share: run, data split, checkpoint, device and output.

    Args:
        parser: the parser.
        splits: type of --split.
        split: default of --split.
    """
    parser.add_argument("run", type=Path, help="run directory of train.py, its config.yaml, or an exported folder")
    parser.add_argument("--split", type=splits, default=split, help="split of the data to measure on")
    parser.add_argument("--ckpt_path", type=Path | None, help=CKPT_PATH)
    add_weights(parser)
    parser.add_argument("--batch_size", type=int, default=128, help="number of images per batch")
    add_device(parser)
    parser.add_argument("--output", type=Path | None, help="output folder (default: RUN/evaluation)")
    parser.add_argument("--codec", type=Codec | None, sub_configs=True, help=CODEC)


@dataclass
class Run:
    """Run directory of train.py, its config file, or an export.

    Attributes:
        path: the directory or the file.
        ckpt_path: checkpoint to use instead of the last one.
        codec: codec to use instead of the checkpoint's.
    """

    path: Path
    ckpt_path: Path | None = None
    codec: Codec | None = None

    @classmethod
    def from_options(cls, options: Any) -> "Run":
        """Return the run that the options of `add_run_arguments` name; raise ValueError for invalid ones."""
        at_least("--batch_size", options.batch_size, 1, "it is the number of images per batch")
        if options.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"--device must be one that this machine has, got {options.device}: use cpu")
        return cls(options.run, options.ckpt_path, options.get("codec"))

    @property
    def folder(self) -> Path:
        """Directory of the run."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def checkpoint(self) -> Path:
        """Checkpoint or export to evaluate."""
        if is_export(self.folder) and self.ckpt_path is None:
            return self.folder
        return self.ckpt_path or self.folder / "checkpoints" / "last.ckpt"

    def model(self, weights: Literal["auto", "ema", "raw"]) -> Any:
        """Load the model of the checkpoint."""
        from asyncdiff.training.lightning_module import AsyncDiffusion  # imported late because it imports Lightning

        allow = ["asyncdiff", *trusted_packages.user_trusted()]
        model = AsyncDiffusion.load_from_checkpoint(self.checkpoint, weights=weights, allow=allow)
        set_codec(model, self.codec)
        return model

    def data(self) -> Any:
        """Build the run's data module."""
        file = self.folder / "config.yaml" if self.path.is_dir() else self.path
        if not file.is_file():
            raise FileNotFoundError(
                f"RUN must be a run directory or its config.yaml, got {self.path}: {file} does not exist"
            )
        return Experiment(file).data()

    def output(self, folder: Path | None) -> Path:
        """Return the output folder; it is created before measuring, so that no results are lost if that fails."""
        path = folder or self.folder / "evaluation"
        if path.exists() and not path.is_dir():
            raise ValueError(f"--output must be a folder, got the file {path}: choose another")
        path.mkdir(parents=True, exist_ok=True)
        return path

    def protocol(self, options: Any, data: Any) -> dict[str, Any]:
        """Return the part of a result card's protocol that all measurements share: checkpoint, data and software."""
        checkpoint = read_checkpoint(self.checkpoint)
        return {
            "checkpoint": str(self.checkpoint),
            "checkpoint_sha256": file_sha256(weight_file(self.checkpoint)),
            "step": checkpoint.get("global_step", 0),
            "weights": choose_weights(checkpoint, options.weights, self.checkpoint)[1],
            "data": type(data).__name__,
            "split": options.split,
            "seed": options.seed,
            "dtype": next(str(v.dtype) for v in checkpoint["state_dict"].values() if v.is_floating_point()),
            **software(options.device),
        }


def check_shape(model: Any, images: torch.Tensor) -> None:
    """Raise ValueError unless images (n, c, h, w) have the model's shape."""
    if tuple(images.shape[1:]) != model.shape:
        raise ValueError(
            f"images must have the model's shape {model.shape}, got {tuple(images.shape[1:])}: "
            "use the data it was trained on"
        )
