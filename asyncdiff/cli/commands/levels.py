"""`python -m asyncdiff levels FILE ...`: plot the noise-level samplers of several experiments side by side."""

import math
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ActionYesNo

from asyncdiff.checks import at_least, check_seeds
from asyncdiff.cli.commands.shared.command_parser import CommandParser, parse_options
from asyncdiff.cli.commands.shared.options import parse_grid
from asyncdiff.memory import check_memory
from asyncdiff.output_paths import check_output_folder

BYTES_PER_LEVEL = 4
DESCRIPTION = """Plot the noise levels that the level samplers of experiments (model.levels) produce, side by side: one
figure, GIFs of noise paths, and TensorBoard logs."""


def main(argv: Sequence[str]) -> None:
    """Parse and check the arguments, then plot."""
    options = parse_options("levels", DESCRIPTION, _declare, argv)
    at_least("--images", options.images, 1, "the default is 4096")
    at_least("--columns", options.columns, 1, "the default is 5")
    check_seeds("--seed", [options.seed])
    grid = parse_grid("--grid", options.grid) if options.grid else None
    patches = options.images * math.prod(grid or (1, 1))
    check_memory("--images and --grid", f"{patches} patches", BYTES_PER_LEVEL * patches, "the defaults are 4096, 16x16")
    if options.output is not None:
        check_output_folder(options.output, "--output")
    from asyncdiff.cli.jobs.plot_levels import plot  # imports PyTorch

    plot(options, grid)


def _declare(parser: CommandParser) -> None:
    parser.add_argument(
        "experiments", nargs="+", type=str, help="YAML files for train.py, or files from experiments/levels"
    )
    parser.add_argument("--output", type=Path | None, help="output folder (default: runs/levels, numbered)")
    parser.add_argument("--names", nargs="+", type=str, help="one name per experiment (default: the file names)")
    parser.add_argument("--grid", type=str, help="ROWSxCOLUMNS of the level maps (default: the network's, or 16x16)")
    parser.add_argument("--images", type=int, default=4096, help="number of level maps to draw from each sampler")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the level maps and paths")
    parser.add_argument("--columns", type=int, default=5, help="maximum number of samplers side by side")
    parser.add_argument(
        "--gif", action=ActionYesNo(yes_prefix="", no_prefix="no-"), default=True, help="write GIFs of noise paths"
    )
