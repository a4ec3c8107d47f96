"""Read the event files of runs, and write hparams and chart layouts to compare the runs in TensorBoard."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asyncdiff.ablation.config import Ablation, Metric, Trial

SUFFIX = ".ablation"  # suffix of these event files, so that a second call replaces only them
HPARAMS = "hp/"  # prefix of the tags that `write_hparams` writes
EVENTS = "events.out.tfevents.*"
LOSS_TAGS = ("train/loss", "val/loss", "val/error_constant", "val/error_heterogeneous")  # logged throughout every run

Curve = list[tuple[int, float]]  # (step, value)


def read_curves(folder: Path) -> dict[str, Curve]:
    """Read all scalars of a run by tag, ordered by step; if a step was logged twice, keep the later value."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # late: slow to import

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith(HPARAMS)]
    return {tag: sorted({event.step: event.value for event in events.Scalars(tag)}.items()) for tag in tags}


def last_values(curves: Mapping[str, Curve], metrics: Sequence[Metric], folder: Path) -> dict[str, float]:
    """Return the final value of each metric; raise ValueError with the available tags if one was not logged."""
    if missing := [metric.tag for metric in metrics if metric.tag not in curves]:
        available = ", ".join(sorted(curves)) or "none"
        raise ValueError(f"the run {folder} did not log the metric {missing[0]}: choose from {available}")
    return {metric.tag: curves[metric.tag][-1][1] for metric in metrics}


def write_hparams(trial: Trial, ablation: Ablation, folder: Path, values: Mapping[str, float], step: int) -> None:
    """Write a run's variants and final values as TensorBoard hparams, with tags hp/TAG that leave the curves alone."""
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    remove_events(folder)
    parameters: dict[str, Any] = {**trial.variants, "seed": trial.seed}
    written = {f"{HPARAMS}{metric.tag}": values[metric.tag] for metric in ablation.metrics}
    with SummaryWriter(str(folder), filename_suffix=SUFFIX) as writer:
        # Not `add_hparams`: it opens another file, with a name like those of training.
        for summary in hparams(parameters, written):
            writer.file_writer.add_summary(summary)
        for tag, value in written.items():
            writer.add_scalar(tag, value, step)


def write_layout(ablation: Ablation, output: Path) -> None:
    """Write a custom-scalar layout in which each chart overlays all runs."""
    from torch.utils.tensorboard import SummaryWriter

    remove_events(output)
    metrics = {metric.label: _chart(metric.tag) for metric in ablation.metrics}
    # Metrics may have been logged only at the end, as one point per run; losses always form curves.
    losses = {tag: _chart(tag) for tag in LOSS_TAGS if tag not in {metric.tag for metric in ablation.metrics}}
    with SummaryWriter(str(output), filename_suffix=SUFFIX) as writer:
        writer.add_custom_scalars({ablation.name: metrics, "training": losses})


def remove_events(folder: Path) -> None:
    """Remove the event files that an earlier call wrote."""
    for earlier in folder.glob(f"{EVENTS}{SUFFIX}"):
        earlier.unlink()


def _chart(tag: str) -> list[Any]:
    return ["Multiline", [f"^{_escape_for_javascript(tag)}$"]]


def _escape_for_javascript(tag: str) -> str:
    """Escape a tag for JavaScript regular expressions, which allow fewer escapes than Python's."""
    return "".join(f"\\{letter}" if letter in r"\^$.|?*+()[]{}" else letter for letter in tag)
