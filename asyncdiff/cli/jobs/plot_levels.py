"""Sample level maps of experiments, and plot them side by side."""

from collections.abc import Sequence
from pathlib import Path

from asyncdiff.checkpoints import object_config
from asyncdiff.cli.commands.shared.experiment_file import Experiment
from asyncdiff.evaluation.figures.level_figure import level_figure
from asyncdiff.evaluation.figures.level_statistics import LevelStatistics, compute_level_statistics
from asyncdiff.evaluation.figures.path_gif import draw_path_frames, save_gif
from asyncdiff.evaluation.figures.style import save
from asyncdiff.evaluation.figures.tensorboard import write_events

GRID = (16, 16)  # for files without a network


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
    save(level_figure(statistics, columns=columns), output / "levels.png")
    print(f"figure: {output / 'levels.png'}")
    for entry in statistics:
        if gif and entry.path is not None:
            save_gif(draw_path_frames(entry), output / f"{entry.name}.gif")
        write_events(entry, output / entry.name)
    if gif and (files := [f"{entry.name}.gif" for entry in statistics if entry.path is not None]):
        print(f"animations: {', '.join(str(output / file) for file in files)}")
    print(f"TensorBoard: tensorboard --logdir {output}")
