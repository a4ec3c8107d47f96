"""`python -m asyncdiff evaluate RUN --samples | --likelihood | --inpainting`: evaluate a trained model."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from asyncdiff.checkpoints import choose_weights, read_checkpoint
from asyncdiff.checkpoints.export import is_export, weight_file
from asyncdiff.checks import at_least
from asyncdiff.cli.commands.shared.experiment_file import Experiment
from asyncdiff.cli.commands.shared.options import add_model, choose_device, load_model
from asyncdiff.evaluation.features.weights import file_sha256
from asyncdiff.evaluation.result_card import software

# Module and summary of every evaluation, by the option that selects it; the module has a function `main(argv)`.
EVALUATIONS = {
    "--samples": ("asyncdiff.cli.commands.evaluate_samples", "samples: FID, KID, precision, recall and more"),
    "--likelihood": ("asyncdiff.cli.commands.evaluate_likelihood", "bits per dimension along several noise paths"),
    "--inpainting": ("asyncdiff.cli.commands.evaluate_inpainting", "inpainting: Fréchet distance, LPIPS, cost"),
}


def main(argv: Sequence[str]) -> None:
    """Run the evaluation selected on the command line."""
    selected = [option for option in EVALUATIONS if option in argv]
    if not selected and {"-h", "--help"} & set(argv):
        print(overview())
        return
    if len(selected) != 1:
        chosen = " and ".join(selected) or "none"
        raise ValueError(
            f"choose exactly one of {', '.join(EVALUATIONS)}, got {chosen}: add --help to one to see its options"
        )
    importlib.import_module(EVALUATIONS[selected[0]][0]).main(argv)  # noqa: TID251  of a fixed table


def overview() -> str:
    """Return the help text, which lists every evaluation with its summary."""
    lines = [f"  {option:14}{summary}" for option, (_, summary) in EVALUATIONS.items()]
    usage = ["usage: python -m asyncdiff evaluate RUN EVALUATION ...", "", *lines, ""]
    return "\n".join(
        [
            *usage,
            "Run python -m asyncdiff evaluate EVALUATION --help for its options, such as evaluate --samples --help.",
        ]
    )


def add_run_arguments(parser: Any, splits: Any = Literal["val", "test"], split: str = "val") -> None:
    """Add the arguments shared by all evaluations: run, data split, checkpoint, device and output.

    Args:
        parser: parser to extend.
        splits: type of --split, a Literal of split names.
        split: default of --split.
    """
    parser.add_argument("run", type=Path, help="run directory of train.py, its config.yaml, or an exported folder")
    parser.add_argument("--split", type=splits, default=split, help="split of the data to evaluate on")
    parser.add_argument("--batch_size", type=int, default=128, help="number of images per batch")
    parser.add_argument("--output", type=Path | None, help="output folder (default: RUN/evaluation)")
    add_model(parser)


@dataclass
class Run:
    """Run that the options added by `add_run_arguments` select; raises ValueError if one of them is invalid."""

    options: Any

    def __post_init__(self) -> None:
        at_least("--batch_size", self.options.batch_size, 1, "the default is 128")
        choose_device(self.options)

    @property
    def folder(self) -> Path:
        """Directory of the run."""
        path: Path = self.options.run
        return path if path.is_dir() else path.parent

    @property
    def checkpoint(self) -> Path:
        """Checkpoint or export to evaluate."""
        if is_export(self.folder) and self.options.ckpt_path is None:
            return self.folder
        return self.options.ckpt_path or self.folder / "checkpoints" / "last.ckpt"

    def model(self) -> Any:
        """Load the model from the checkpoint."""
        return load_model(self.checkpoint, self.options)

    def data(self) -> Any:
        """Build the run's data module."""
        path = self.options.run
        file = path / "config.yaml" if path.is_dir() else path
        if not file.is_file():
            raise FileNotFoundError(
                f"RUN must be a run directory or its config.yaml, got {path}, but {file} does not exist"
            )
        return Experiment(file).data()

    def output(self) -> Path:
        """Create and return the output folder, before anything is computed whose results could be lost."""
        path: Path = self.options.output or self.folder / "evaluation"
        if path.exists() and not path.is_dir():
            raise ValueError(f"--output must be a folder, got the file {path}: choose another path")
        path.mkdir(parents=True, exist_ok=True)
        return path

    def protocol(self, data: Any) -> dict[str, Any]:
        """Return the part of the protocol that all evaluations share: checkpoint, data and software."""
        options = self.options
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
            "use the data that the model was trained on"
        )
