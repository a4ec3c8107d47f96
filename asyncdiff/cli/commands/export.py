"""`python -m asyncdiff export RUN --output DIR`: export a trained model as a folder to share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from asyncdiff import output_paths
from asyncdiff.checkpoints.export.files import check_output_folder
from asyncdiff.checkpoints.export.hub import check_repository
from asyncdiff.checkpoints.locate import is_export
from asyncdiff.cli.commands.shared.command_parser import CommandParser, parse_options
from asyncdiff.cli.commands.shared.options import WEIGHTS
from asyncdiff.cli.commands.shared.runs import find_checkpoint

DESCRIPTION = (
    "Export a trained model for AsyncDiffusion.from_pretrained: safetensors, YAML configuration and model card."
)


def main(argv: Sequence[str]) -> None:
    """Parse and check the arguments, then write the folder."""
    options = parse_options("export", DESCRIPTION, _declare, argv)
    use_last = options.ckpt_path == Path("last") and not Path("last").exists()
    file = find_checkpoint(options.run, None if use_last and not options.run.is_file() else options.ckpt_path)
    if is_export(file):
        name = "RUN" if file == options.run else "--ckpt_path"
        raise ValueError(
            f"{name} must be a run directory or a .ckpt file, got the export {file}: copy that folder instead"
        )
    output_paths.check_output_folder(options.output, "--output", may_be_a_run=True)
    check_output_folder(options.output, overwrite=options.overwrite)
    if options.push_to_hub is not None:
        check_repository(options.push_to_hub)
    from asyncdiff.cli.jobs.export_model import export  # imports PyTorch

    export(file, options)


def _declare(parser: CommandParser) -> None:
    parser.add_argument("run", type=Path, help="run directory of train.py, or .ckpt file")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder to write; it must not exist yet, unless --overwrite is given"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing export")
    parser.add_argument("--ckpt_path", type=Path | None, help="checkpoint file, or last (default: last)")
    parser.add_argument("--weights", type=Literal["auto", "ema", "raw"], default="auto", help=WEIGHTS)
    parser.add_argument("--name", type=str | None, help="name of the model in its card (default: the folder's)")
    parser.add_argument("--label_names", type=Path | None, help="text file with one class name per line")
    parser.add_argument("--push_to_hub", type=str | None, help="Hugging Face repository OWNER/NAME to upload to")
    parser.add_argument("--private", action="store_true", help="make the repository private if it is created")
