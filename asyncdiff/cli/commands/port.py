"""`python -m asyncdiff port CHECKPOINT --output FILE.ckpt`: convert DiT and SiT weights from other projects."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from asyncdiff.checks import MAX_IMAGES, MAX_SIDE, at_least
from asyncdiff.cli.commands.shared.command_parser import CommandParser, parse_options
from asyncdiff.output_paths import check_output_file

MAX_HEADS = 1024
DESCRIPTION = """Convert DiT or SiT weights, or a diffusers folder with a DiT, to a checkpoint for train.py and all
other commands."""


def main(argv: Sequence[str]) -> None:
    """Parse and check the arguments, then convert the weights."""
    options = parse_options("port", DESCRIPTION, _declare, argv)
    if options.output.suffix != ".ckpt" or options.output.exists():
        raise ValueError(f"--output must be a new .ckpt file, got {options.output}: choose another path")
    check_output_file(options.output, "--output")
    for name, largest in (("heads", MAX_HEADS), ("image_size", MAX_SIDE), ("classes", MAX_IMAGES)):
        if options[name] is not None:
            at_least(f"--{name}", options[name], 1, "omit it to use the file's value", largest)
    from asyncdiff.cli.jobs.port_weights import port  # imports PyTorch

    port(options)


def _declare(parser: CommandParser) -> None:
    parser.add_argument("checkpoint", type=Path, help=".pt, .pth or .safetensors file, or diffusers folder")
    parser.add_argument("--output", type=Path, required=True, help=".ckpt file to write, which must not exist yet")
    parser.add_argument(
        "--kind",
        type=Literal["dit", "sit"] | None,
        help="kind of model; required for a file, which does not contain it",
    )
    parser.add_argument("--weights", type=Literal["auto", "ema", "raw"], default="auto", help=WEIGHTS)
    parser.add_argument("--heads", type=int | None, help="number of attention heads (default: the official size's)")
    parser.add_argument(
        "--image_size", type=int | None, help="side length of the images or latents, if the file does not contain it"
    )
    parser.add_argument(
        "--classes",
        type=int | None,
        help="number of classes, if the file does not contain it (default: 1000)",
    )
    parser.add_argument("--frequencies", type=Literal["diffusers", "authors"] | None, help=FREQUENCIES)


WEIGHTS = "weights to convert from a file with several sets: auto (EMA weights if there are any, else raw), ema, or raw"
FREQUENCIES = """frequencies of the time embedding of a diffusers folder: those of diffusers, or the slightly different
ones that the authors trained their weights with (default: diffusers)"""
