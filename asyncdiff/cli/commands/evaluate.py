"""`python -m asyncdiff evaluate RUN --samples | --likelihood | --inpainting`: evaluate a trained model.

The options are checked before PyTorch is imported; the modules `asyncdiff.cli.jobs.evaluate_*` then evaluate.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from asyncdiff.checkpoints.locate import is_export
from asyncdiff.checks import MAX_IMAGES, at_least
from asyncdiff.cli.commands.shared.command_parser import CommandParser
from asyncdiff.cli.commands.shared.options import add_model, check_file_name
from asyncdiff.cli.commands.shared.runs import find_checkpoint
from asyncdiff.output_paths import check_output_file, check_output_folder

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


def add_run_arguments(
    parser: CommandParser, splits: Any = Literal["val", "test"], split: str = "val", precision: str = ""
) -> None:
    """Add the arguments shared by all evaluations: run, data split, checkpoint, device, precision and output.

    Args:
        parser: parser to extend.
        splits: type of --split, a Literal of split names.
        split: default of --split.
        precision: default of --precision, for the help; that of the run if empty.
    """
    parser.add_argument("run", type=Path, help="run directory of train.py, its config.yaml, or an exported folder")
    parser.add_argument("--split", type=splits, default=split, help="split of the data to evaluate on")
    parser.add_argument("--batch_size", type=int, default=128, help="number of images per batch")
    parser.add_argument("--output", type=Path | None, help="output folder (default: RUN/evaluation)")
    add_model(parser, precision)


@dataclass(frozen=True)
class Run:
    """Run that the options added by `add_run_arguments` select; raises ValueError if the batch size is invalid.

    Attributes:
        options: values of the options.
    """

    options: Any

    def __post_init__(self) -> None:
        at_least("--batch_size", self.options.batch_size, 1, "the default is 128", MAX_IMAGES)
        check_file_name("--name", self.options.name)

    @property
    def folder(self) -> Path:
        """Directory of the run."""
        path: Path = self.options.run
        return path if path.is_dir() else path.parent

    def find_config(self) -> Path:
        """Return the YAML file that configures the data; raise FileNotFoundError if there is none."""
        path: Path = self.options.run
        file = path / "config.yaml" if path.is_dir() else path
        if not file.is_file():
            raise FileNotFoundError(
                f"RUN must be a run directory or its config.yaml, got {path}, but {file} does not exist"
            )
        return file

    def find_checkpoint(self) -> Path:
        """Return the checkpoint or export to evaluate; raise FileNotFoundError if there is none."""
        path: Path | None = self.options.ckpt_path
        return path if path is not None and is_export(self.folder) else find_checkpoint(self.folder, path)

    def check_files(self) -> None:
        """Raise FileNotFoundError or ValueError unless the files to read exist and the results can be written."""
        self.find_config()
        self.find_checkpoint()
        self.check_output()

    def check_output(self) -> None:
        """Raise ValueError unless the results can be written."""
        check_output_folder(self._output, "--output", may_be_a_run=True)
        name = self.options.name
        for suffix in (".json", ".md", ".png"):
            check_output_file(self._output / f"{name}{suffix}", "--name")

    def output(self) -> Path:
        """Create and return the output folder, which `check_output` has permitted."""
        self._output.mkdir(parents=True, exist_ok=True)
        return self._output

    @property
    def _output(self) -> Path:
        path: Path = self.options.output or self.folder / "evaluation"
        return path
