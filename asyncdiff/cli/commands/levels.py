"""`levels`: what the noise-level samplers of experiments draw, side by side, as pictures and in TensorBoard."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ActionYesNo

from asyncdiff.checkpoints import object_config
from asyncdiff.checks import at_least
from asyncdiff.cli.commands.experiment_file import Experiment
from asyncdiff.cli.commands.options import command_parser, rows_by_columns
from asyncdiff.evaluation.figures.level_statistics import Survey, survey
from asyncdiff.tasks.contact_sheet import fresh_folder

GRID = (16, 16)  # of files without a network


def main(args: Sequence[str]) -> None:
    """Draw the samplers of the experiment files that are named."""
    parser = command_parser("levels", "Draw the noise-level samplers of experiments (model.levels) side by side.")
    parser.add_argument("experiments", nargs="+", type=str, help="YAML files of train.py, or of experiments/levels")
    parser.add_argument("--output", type=Path | None, help="folder of all files; runs/levels, numbered, by default")
    parser.add_argument("--names", nargs="+", type=str, help="one per experiment; the names of the files by default")
    parser.add_argument("--grid", type=str, help="ROWSxCOLUMNS of the level map; the network's by default, or 16x16")
    parser.add_argument("--images", type=int, default=4096, help="maps to draw of each sampler")
    parser.add_argument("--seed", type=int, default=0, help="of the maps and the paths")
    parser.add_argument("--columns", type=int, default=5, help="samplers beside each other at most")
    parser.add_argument(
        "--gif", action=ActionYesNo(yes_prefix="", no_prefix="no-"), default=True, help="draw moving paths"
    )
    given = parser.parse_args(list(args))
    at_least("images", given.images, 1, "4096 shows the distribution")
    at_least("columns", given.columns, 1, "5 fit on a page")
    experiments = [Experiment(Path(file)) for file in given.experiments]
    names = checked_names(given.names or [experiment.name for experiment in experiments], len(experiments))
    grid = rows_by_columns("grid", given.grid) if given.grid else None
    surveys = [
        surveyed(experiment, name, grid, images=given.images, seed=given.seed)
        for experiment, name in zip(experiments, names, strict=True)
    ]
    output = given.output or fresh_folder(Path("runs/levels"), given=False)
    publish(surveys, output, columns=given.columns, moving=given.gif)


def checked_names(names: Sequence[str], count: int) -> Sequence[str]:
    """The names, refused unless there is one for every experiment and all can be folders beside each other."""
    if len(names) != count:
        raise ValueError(f"names must be as many as experiments, got {len(names)} for {count}: put them last")
    for name, times in Counter(names).items():
        if times > 1:
            raise ValueError(f"names must differ, got {name} {times} times: tell the experiments apart with --names")
        if Path(name).name != name or name == "..":
            raise ValueError(f"names must be names of files, got {name}: leave out the folder")
    return names


def surveyed(experiment: Experiment, name: str, grid: tuple[int, int] | None, *, images: int, seed: int) -> Survey:
    """Maps of an experiment's sampler."""
    sampler = experiment.levels()
    grid = grid or experiment.grid() or GRID
    with experiment.named():
        return survey(name, sampler, grid, note=object_config.spell(sampler), images=images, seed=seed)


def publish(surveys: Sequence[Survey], output: Path, *, columns: int, moving: bool) -> None:
    """Write the figure, the moving paths and the event files, and tell where they are."""
    # Loaded where the words turned out right: matplotlib and TensorBoard take seconds.
    from asyncdiff.evaluation.figures.level_figure import level_figure
    from asyncdiff.evaluation.figures.path_gif import save_gif, viewer_frames
    from asyncdiff.evaluation.figures.style import save
    from asyncdiff.evaluation.figures.tensorboard import write_events

    save(level_figure(surveys, columns=columns), output / "levels.png")
    print(f"figure: {output / 'levels.png'}")
    for one in surveys:
        if moving and one.path is not None:
            save_gif(viewer_frames(one), output / f"{one.name}.gif")
        write_events(one, output / one.name)
    if moving and (walks := [f"{one.name}.gif" for one in surveys if one.path is not None]):
        print(f"paths: {', '.join(walks)} in {output}")
    print(f"TensorBoard: tensorboard --logdir {output}")
