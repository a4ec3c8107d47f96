"""`python -m asyncdiff levels FILE ...`: plot the noise-level samplers of several experiments side by side."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ActionYesNo

from asyncdiff.checkpoints import object_config
from asyncdiff.checks import at_least
from asyncdiff.cli.commands.shared.experiment_file import Experiment
from asyncdiff.cli.commands.shared.options import command_parser, parse_grid
from asyncdiff.evaluation.figures.level_statistics import LevelStatistics, compute_level_statistics
from asyncdiff.tasks.contact_sheet import create_output_folder

GRID = (16, 16)  # for files without a network

DESCRIPTION = """Plot the noise levels that the level samplers of experiments (model.levels) produce, side by side: one
figure, GIFs of noise paths, and TensorBoard logs."""


def main(argv: Sequence[str]) -> None:
    """Parse the arguments, sample level maps and write the plots."""
    parser = command_parser("levels", DESCRIPTION)
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
    options = parser.parse_args(list(argv))
    at_least("--images", options.images, 1, "the default is 4096")
    at_least("--columns", options.columns, 1, "the default is 5")
    experiments = [Experiment(Path(file)) for file in options.experiments]
    names = check_names(options.names or [experiment.name for experiment in experiments], len(experiments))
    grid = parse_grid("--grid", options.grid) if options.grid else None
    statistics = [
        sample_statistics(experiment, name, grid, images=options.images, seed=options.seed)
        for experiment, name in zip(experiments, names, strict=True)
    ]
    output = options.output or create_output_folder(Path("runs/levels"), explicit=False)
    publish(statistics, output, columns=options.columns, gif=options.gif)


def check_names(names: Sequence[str], count: int) -> Sequence[str]:
    """Return the names; raise ValueError unless there is one per experiment, different and valid as folder names."""
    if len(names) != count:
        raise ValueError(
            f"--names needs one name per experiment, got {len(names)} name{'s' * (len(names) > 1)} for "
            f"{count} experiment{'s' * (count > 1)}: put --names after the files"
        )
    for name, times in Counter(names).items():
        if times > 1:
            raise ValueError(f"names must differ, got {name} {times} times: choose different ones with --names")
        if Path(name).name != name or name == "..":
            raise ValueError(f"--names must be file names, got {name}: leave the folder out")
    return names


def sample_statistics(
    experiment: Experiment, name: str, grid: tuple[int, int] | None, *, images: int, seed: int
) -> LevelStatistics:
    """Draw level maps from the level sampler of an experiment.

    Args:
        experiment: experiment whose model.levels is sampled.
        name: name of the experiment in the plots.
        grid: (rows, columns) of the level maps; None for the network's, or for `GRID` without a network.
        images: number of level maps to draw.
        seed: random seed.

    Returns:
        Statistics of the level maps.
    """
    sampler = experiment.levels()
    grid = grid or experiment.grid() or GRID
    with experiment.name_in_errors():
        return compute_level_statistics(
            name, sampler, grid, note=object_config.format_call(sampler), images=images, seed=seed
        )


def publish(statistics: Sequence[LevelStatistics], output: Path, *, columns: int, gif: bool) -> None:
    """Write the figure, the GIFs and the event files, and print where they are."""
    # Imported after the arguments have been checked: matplotlib and TensorBoard take seconds.
    from asyncdiff.evaluation.figures.level_figure import level_figure
    from asyncdiff.evaluation.figures.path_gif import draw_path_frames, save_gif
    from asyncdiff.evaluation.figures.style import save
    from asyncdiff.evaluation.figures.tensorboard import write_events

    save(level_figure(statistics, columns=columns), output / "levels.png")
    print(f"figure: {output / 'levels.png'}")
    for entry in statistics:
        if gif and entry.path is not None:
            save_gif(draw_path_frames(entry), output / f"{entry.name}.gif")
        write_events(entry, output / entry.name)
    if gif and (files := [f"{entry.name}.gif" for entry in statistics if entry.path is not None]):
        print(f"animations: {', '.join(str(output / file) for file in files)}")
    print(f"TensorBoard: tensorboard --logdir {output}")
