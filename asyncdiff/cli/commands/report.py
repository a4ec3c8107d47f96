"""`python -m asyncdiff report RUNS`: tables, curves and pictures of runs beside each other, from their event files."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from asyncdiff.ablation.collect import FoundRun, by_variant, comparable, find_runs, metrics_of, values
from asyncdiff.ablation.config import Metric
from asyncdiff.ablation.report import Picture, Report
from asyncdiff.ablation.tensorboard import COURSES
from asyncdiff.cli.commands.options import command_parser

DESCRIPTION = """Compare the runs in one or several folders: report.md with plots, report.html as one file, report.json.
Numbers are the last values in the runs' event files."""
GRIDS = ("samples", "inpainting")  # pictures in RUN/images


def main(args: Sequence[str]) -> None:
    """Read the runs, plot, write, and print the table."""
    parser = command_parser("report", DESCRIPTION)
    parser.add_argument("runs", nargs="+", type=Path, help="run directories, or folders of them")
    parser.add_argument("--output", type=Path | None, help="folder; FIRST/report by default")
    parser.add_argument("--metrics", type=str, default="", help="tags with commas; the ablation's, or usual ones")
    parser.add_argument("--title", type=str | None, help="the first folder's name by default")
    options = parser.parse_args(list(args))
    runs, left_out = comparable(find_runs(options.runs))
    metrics = metrics_of(runs, [tag for tag in options.metrics.split(",") if tag])
    folder = options.output or options.runs[0] / "report"
    folder.mkdir(parents=True, exist_ok=True)
    report = Report(
        title=options.title or options.runs[0].resolve().name,
        runs=runs,
        metrics=metrics,
        left_out=left_out,
        figures=figures(runs, metrics, folder),
        grids=grids(runs, folder),
    )
    (folder / "report.md").write_text(report.markdown())
    (folder / "report.html").write_text(report.page())
    (folder / "report.json").write_text(json.dumps(report.card(), indent=1, default=str))
    print("\n".join([f"| {' | '.join(report.heads())} |", "|---" * (len(metrics) + 2) + "|"]))
    print("\n".join(f"| {' | '.join(row)} |" for row in report.rows()))
    print("\n".join(left_out))
    print(f"report: {folder / 'report.md'}\npage: {folder / 'report.html'}\nnumbers: {folder / 'report.json'}")


def figures(runs: Sequence[FoundRun], metrics: Sequence[Metric], folder: Path) -> list[Picture]:
    """The plots, written."""
    from asyncdiff.evaluation.figures.style import save
    from asyncdiff.evaluation.figures.sweep_figures import curves_figure, dots_figure  # late: matplotlib takes a second

    groups = by_variant(runs)
    pictures = [Picture(folder / "metrics.png", "last values: a dot per run, a line at their mean")]
    dots = {metric.label: {name: values(group, metric) for name, group in groups.items()} for metric in metrics}
    save(dots_figure(dots), pictures[0].file)
    for tag in dict.fromkeys([*COURSES, *(metric.tag for metric in metrics)]):
        found = {name: [run.curves[tag] for run in group if tag in run.curves] for name, group in groups.items()}
        drawn = {name: curves for name, curves in found.items() if curves and min(map(len, curves)) > 1}
        if drawn:
            file = folder / f"{tag.replace('/', '_')}.png"
            save(curves_figure(tag, drawn), file)
            pictures.append(Picture(file, f"{tag}: mean and range over the runs of a variant"))
    return pictures


def grids(runs: Sequence[FoundRun], folder: Path) -> dict[str, list[Picture]]:
    """The pictures that the first run of every variant drew last, copied."""
    found: dict[str, list[Picture]] = {}
    for name in GRIDS:
        for variant, group in by_variant(runs).items():
            file = group[0].folder / "images" / f"{name}.png"
            if file.is_file():
                copied = folder / f"{name}_{variant.replace('/', '_')}.png"
                shutil.copyfile(file, copied)
                found.setdefault(name, []).append(Picture(copied, variant))
    return found
