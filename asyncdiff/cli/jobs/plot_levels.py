"""Sample level maps of experiments, and plot them side by side."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asyncdiff.checkpoints import object_config
from asyncdiff.checkpoints.run_lock import hold
from asyncdiff.cli.commands.shared.options import check_file_name
from asyncdiff.cli.jobs.experiment_file import Experiment
from asyncdiff.evaluation.figures.level_figure import level_figure
from asyncdiff.evaluation.figures.level_statistics import LevelStatistics, compute_level_statistics
from asyncdiff.evaluation.figures.path_gif import draw_path_frames, save_gif
from asyncdiff.evaluation.figures.style import save
from asyncdiff.evaluation.figures.tensorboard import write_events
from asyncdiff.tasks.arguments import choose_output_folder

GRID = (16, 16)  # for files without a network


def plot(options: Any, grid: tuple[int, int] | None) -> None:
    """Draw level maps as the options of the command ask for, write the plots, and print where they are."""
    experiments = [Experiment(Path(file)) for file in options.experiments]
    names = check_names(options.names or [experiment.name for experiment in experiments], len(experiments))
    statistics = [
        _statistics(experiment, name, grid, images=options.images, seed=options.seed)
        for experiment, name in zip(experiments, names, strict=True)
    ]
    output = options.output or choose_output_folder(Path("runs/levels"), explicit=False)
    with hold(output, "being written"):
        save(level_figure(statistics, columns=options.columns), output / "levels.png")
        print(f"figure: {output / 'levels.png'}")
        animated = [entry for entry in statistics if options.gif and entry.path is not None]
        for entry in animated:
            save_gif(draw_path_frames(entry), output / f"{entry.name}.gif")
        for entry in statistics:
            write_events(entry, output / entry.name)
        if animated:
            print(f"animations: {', '.join(str(output / f'{entry.name}.gif') for entry in animated)}")
    print(f"TensorBoard: tensorboard --logdir {output}")


def _statistics(
    experiment: Experiment, name: str, grid: tuple[int, int] | None, *, images: int, seed: int
) -> LevelStatistics:
    """Draw level maps from the level sampler of an experiment."""
    sampler = experiment.levels()
    grid = grid or experiment.grid() or GRID
    with experiment.name_in_errors():
        return compute_level_statistics(
            name, sampler, grid, note=object_config.format_call(sampler), images=images, seed=seed
        )


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
        check_file_name("--names", name)
    return names
