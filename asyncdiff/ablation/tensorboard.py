"""Reading runs' event files, and writing what makes TensorBoard show an ablation as one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asyncdiff.ablation.config import Ablation, Metric, Trial

SUFFIX = ".ablation"  # of our own event files, so that a second call replaces them and no others
EVENTS = "events.out.tfevents.*"
COURSES = ("train/loss", "val/loss", "val/error_constant", "val/error_heterogeneous")  # what every run logs all along

Curve = list[tuple[int, float]]  # steps with values


def read_curves(folder: Path) -> dict[str, Curve]:
    """Every scalar of a run by its tag, in the order of the steps; of a step that was logged twice the later value."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # late: it takes a second

    values: dict[str, dict[int, tuple[float, float]]] = {}
    for file in sorted(folder.glob(EVENTS)):
        if file.name.endswith(SUFFIX):
            continue
        events = EventAccumulator(str(file), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            steps = values.setdefault(tag, {})
            for event in events.Scalars(tag):
                if event.step not in steps or event.wall_time >= steps[event.step][0]:
                    steps[event.step] = event.wall_time, event.value
    return {tag: [(step, steps[step][1]) for step in sorted(steps)] for tag, steps in values.items()}


def last_values(curves: Mapping[str, Curve], metrics: Sequence[Metric], folder: Path) -> dict[str, float]:
    """The last value of every metric; ValueError naming the tags that there are if one is missing."""
    if missing := [metric.tag for metric in metrics if metric.tag not in curves]:
        there = ", ".join(sorted(curves)) or "none"
        raise ValueError(
            f"metrics must be logged by the runs, got no {missing[0]} in {folder}, where there are: {there}"
        )
    return {metric.tag: curves[metric.tag][-1][1] for metric in metrics}


def write_parameters(cell: Trial, ablation: Ablation, folder: Path, values: Mapping[str, float], step: int) -> None:
    """Add a run's variants and last values to its events as TensorBoard's hparams, with tags apart: hp/TAG."""
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    forget(folder)
    parameters: dict[str, Any] = {**cell.variants, "seed": cell.seed}
    written = {f"hp/{metric.tag}": values[metric.tag] for metric in ablation.metrics}
    with SummaryWriter(str(folder), filename_suffix=SUFFIX) as writer:
        # Not `add_hparams`: it opens a file of its own, whose name would not tell it from those of the training.
        for summary in hparams(parameters, written):
            writer.file_writer.add_summary(summary)
        for tag, value in written.items():
            writer.add_scalar(tag, value, step)


def write_layout(ablation: Ablation, output: Path) -> None:
    """Charts of every metric in which all runs lie over each other, in TensorBoard's custom scalars."""
    from torch.utils.tensorboard import SummaryWriter

    forget(output)
    metrics = {metric.label: _chart(metric.tag) for metric in ablation.metrics}
    # Metrics may have been measured at the end only: a dot for each run. Losses always have a course.
    courses = {tag: _chart(tag) for tag in COURSES if tag not in {metric.tag for metric in ablation.metrics}}
    with SummaryWriter(str(output), filename_suffix=SUFFIX) as writer:
        writer.add_custom_scalars({ablation.name: metrics, "training": courses})


def forget(folder: Path) -> None:
    """Remove what an earlier call wrote."""
    for earlier in folder.glob(f"{EVENTS}{SUFFIX}"):
        earlier.unlink()


def _chart(tag: str) -> list[Any]:
    return ["Multiline", [f"^{_escaped(tag)}$"]]


def _escaped(tag: str) -> str:
    """A tag as a pattern of JavaScript's, which knows fewer escapes than Python's."""
    return "".join(f"\\{letter}" if letter in r"\^$.|?*+()[]{}" else letter for letter in tag)
