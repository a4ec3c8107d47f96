"""`python -m asyncdiff report RUN ...`: summarize runs in tables, curves and images, from their event files."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from asyncdiff.ablation.collect import (
    TrainingRun,
    final_values,
    find_runs,
    group_by_variant,
    select_comparable,
    select_metrics,
)
from asyncdiff.ablation.config import Metric
from asyncdiff.ablation.report import Report, ReportImage
from asyncdiff.ablation.tensorboard import LOSS_TAGS
from asyncdiff.checkpoints.atomic_files import write_atomically
from asyncdiff.checkpoints.run_lock import hold
from asyncdiff.cli.commands.shared.command_parser import CommandParser, parse_options
from asyncdiff.foreign_text import file_names, visible
from asyncdiff.output_paths import check_output_folder

DESCRIPTION = """Compare runs by the final values in their event files, and write report.md with plots, a self-contained
report.html, and report.json."""
GRIDS = ("samples", "inpainting")  # image grids in RUN/images


def main(argv: Sequence[str]) -> None:
    """Parse the arguments, write the report with its plots, and print the table."""
    options = parse_options("report", DESCRIPTION, _declare, argv)
    if options.output is not None:
        check_output_folder(options.output, "--output", may_be_a_run=True)
    runs, left_out = select_comparable(find_runs(options.runs))
    metrics = select_metrics(runs, [tag for tag in options.metrics.split(",") if tag])
    folder = options.output or options.runs[0] / "report"
    check_output_folder(folder, "--output", may_be_a_run=True)
    with hold(folder, "being written"):
        report = Report(
            title=options.title or options.runs[0].resolve().name,
            runs=runs,
            metrics=metrics,
            left_out=left_out,
            figures=figures(runs, metrics, folder),
            grids=grids(runs, folder),
        )
        write_atomically(folder / "report.md", [report.markdown().encode()])
        write_atomically(folder / "report.html", [report.page().encode()])
        write_atomically(folder / "report.json", [json.dumps(report.card(), indent=1, default=str).encode()])
    print(report.table())
    print("\n".join(map(visible, left_out)))
    print(f"report: {folder / 'report.md'}\npage: {folder / 'report.html'}\ndata: {folder / 'report.json'}")


def _declare(parser: CommandParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, help="run directories, or folders that contain run directories")
    parser.add_argument("--output", type=Path | None, help="output folder (default: report in the first folder)")
    parser.add_argument("--metrics", type=str, default="", help=METRICS)
    parser.add_argument("--title", type=str | None, help="title of the report (default: the first folder's name)")


def figures(runs: Sequence[TrainingRun], metrics: Sequence[Metric], folder: Path) -> list[ReportImage]:
    """Write the plots, and return their files with captions."""
    from asyncdiff.evaluation.figures.style import save  # imported late because matplotlib takes a second
    from asyncdiff.evaluation.figures.sweep_figures import curves_figure, dots_figure

    groups = group_by_variant(runs)
    images = [ReportImage(folder / "metrics.png", "final values: one dot per run, a line at the mean")]
    dots = {metric.label: {name: final_values(group, metric) for name, group in groups.items()} for metric in metrics}
    save(dots_figure(dots), images[0].file)
    names = file_names(["metrics", *LOSS_TAGS, *(metric.tag for metric in metrics)])
    for tag in dict.fromkeys([*LOSS_TAGS, *(metric.tag for metric in metrics)]):
        curves = {name: [run.curves[tag] for run in group if tag in run.curves] for name, group in groups.items()}
        plotted = {name: group for name, group in curves.items() if group and min(map(len, group)) > 1}
        if plotted:
            file = folder / f"{names[tag]}.png"
            save(curves_figure(tag, plotted), file)
            images.append(ReportImage(file, f"{tag}: mean and range over the runs of a variant"))
    return images


def grids(runs: Sequence[TrainingRun], folder: Path) -> dict[str, list[ReportImage]]:
    """Copy the latest image grids of every variant's first run, and return the copies by grid name."""
    copies: dict[str, list[ReportImage]] = {}
    groups = group_by_variant(runs)
    names = file_names(groups)
    for name in GRIDS:
        for variant, group in groups.items():
            file = group[0].folder / "images" / f"{name}.png"
            if file.is_file():
                copy = folder / f"{name}_{names[variant]}.png"
                shutil.copyfile(file, copy)
                copies.setdefault(name, []).append(ReportImage(copy, variant))
    return copies


METRICS = (
    "comma-separated TensorBoard tags (default: those of the ablation, otherwise those that the runs have in common)"
)
