"""Collect training runs from disk, whether or not they belong to an ablation."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asyncdiff.ablation.config import Metric
from asyncdiff.ablation.launch import FINISHED, RECORD, read_record
from asyncdiff.ablation.tensorboard import EVENTS, Curve, read_curves
from asyncdiff.checkpoints.old_names import update_config
from asyncdiff.evaluation.result_card import read_card
from asyncdiff.yaml_files import read_yaml

# Tags that start with these prefixes are compared by default, outside an ablation; min if lower is better.
DEFAULT_TAGS = {"frechet/": "min", "bits_per_dim/": "min", "val/loss": "min", "val/error_constant": "min"}
OMITTED_KEYS = ("hardware", "torch", "commit", "step", "measurement")  # protocol keys that a report shows elsewhere
EXCLUDED_SUFFIXES = ("_real",)  # tags with these suffixes do not depend on the model


@dataclass(frozen=True)
class TrainingRun:
    """A training run with its logged scalars.

    Attributes:
        folder: run directory.
        variant: name shared by runs that differ only in the seed.
        seed: seed of the run, None if unknown.
        finished: whether the run has finished, None if unknown.
        curves: all scalars by tag.
        record: content of cell.json, written by an ablation; empty for other runs.
    """

    folder: Path
    variant: str
    seed: int | None
    finished: bool | None
    curves: Mapping[str, Curve]
    record: Mapping[str, Any]

    def last_value(self, metric: Metric) -> float | None:
        """Return the final value of the metric, or None if it was not logged."""
        curve = self.curves.get(metric.tag)
        return curve[-1][1] if curve else None


def find_runs(roots: Sequence[Path]) -> list[TrainingRun]:
    """Find all runs in or below the given folders; raise ValueError if a folder contains none."""
    runs = []
    for root in roots:
        if not root.is_dir():
            raise FileNotFoundError(f"RUNS must be folders, but {root} is not one: check the path")
        folders = sorted({file.parent for name in ("config.yaml", RECORD) for file in root.rglob(name)})
        if not folders:
            raise ValueError(f"RUNS: {root} contains no run directory with a config.yaml: check the path")
        runs += [_read_run(folder, root) for folder in folders]
    return runs


def select_comparable(runs: Sequence[TrainingRun]) -> tuple[list[TrainingRun], list[str]]:
    """Return the runs that can be compared, and one line about each run that is unfinished or has no event files."""
    usable, notes = [], []
    for run in runs:
        if not run.curves:
            notes.append(f"{run.folder}: no event files ({EVENTS}): was it run with a TensorBoardLogger?")
        elif run.finished is False:
            notes.append(f"{run.folder}: not finished, excluded from tables and curves")
        else:
            usable.append(run)
    if not usable:
        raise ValueError(f"RUNS: none of the {len(runs)} runs can be compared: {notes[0]}")
    return usable, notes


def select_metrics(runs: Sequence[TrainingRun], requested: Sequence[str] = ()) -> list[Metric]:
    """Return the requested metrics; by default those of the ablation, or else the logged ones in `DEFAULT_TAGS`."""
    tags = list(dict.fromkeys(tag for run in runs for tag in run.curves))
    if requested:
        if missing := [tag for tag in requested if tag not in tags]:
            raise ValueError(f"--metrics: no run logged {missing[0]}: choose from {', '.join(sorted(tags))}")
        return [Metric(tag, tag, _default_goal(tag)) for tag in requested]
    recorded = {entry["tag"]: Metric(**entry) for run in runs for entry in run.record.get("metrics", [])}
    if recorded:
        return list(recorded.values())
    defaults = [tag for tag in tags if tag.startswith(tuple(DEFAULT_TAGS)) and not tag.endswith(EXCLUDED_SUFFIXES)]
    if not defaults:
        raise ValueError(
            f"no run logged {', '.join(DEFAULT_TAGS)}, but only {', '.join(sorted(tags))}: select tags with --metrics"
        )
    return [Metric(tag, tag, _default_goal(tag)) for tag in sorted(defaults)]


def group_by_variant(runs: Sequence[TrainingRun]) -> dict[str, list[TrainingRun]]:
    """Group runs by variant, in the order of the ablation if there is one."""
    groups: dict[str, list[TrainingRun]] = {}
    for run in sorted(runs, key=lambda run: run.record.get("number", 0)):
        groups.setdefault(run.variant, []).append(run)
    return groups


def final_values(runs: Sequence[TrainingRun], metric: Metric) -> list[float]:
    """Return the final value of the metric in each run that logged it."""
    return [value for run in runs if (value := run.last_value(metric)) is not None]


def compare_settings(runs: Sequence[TrainingRun]) -> tuple[dict[str, Any], list[str]]:
    """Return the software and settings common to all runs, and the dotted keys in which the runs differ."""
    return _split_common([_flatten({"software": run.record.get("software", {}), **_read_config(run)}) for run in runs])


def metric_protocols(
    runs: Sequence[TrainingRun], metrics: Sequence[Metric]
) -> dict[str, tuple[dict[str, Any], list[str]]]:
    """Return by tag the protocol of each Fréchet distance: values common to all runs, and dotted keys that differ.

    A run without a result card, such as a run of an earlier version, differs in the key "card".
    """
    result = {}
    names = sorted({name for metric in metrics if (name := _frechet_feature_name(metric.tag, runs))})
    for name in names:
        cards = [run.folder / "evaluation" / f"frechet_{name}.json" for run in runs]
        protocols = [_flatten(read_card(card)["protocol"]) if card.is_file() else {"card": "none"} for card in cards]
        result[f"frechet/{name}"] = _split_common(
            [{k: v for k, v in p.items() if k not in OMITTED_KEYS} for p in protocols]
        )
    return result


def mean_and_deviation(numbers: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and the standard deviation, which is None for a single number."""
    return statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else None


def _split_common(settings: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """Return the key-value pairs common to all mappings, and the keys in which they differ."""
    keys = list(dict.fromkeys(key for leaves in settings for key in leaves))
    same = {key: settings[0].get(key) for key in keys if len({repr(leaves.get(key)) for leaves in settings}) == 1}
    return same, [key for key in keys if key not in same]


def _frechet_feature_name(tag: str, runs: Sequence[TrainingRun]) -> str | None:
    """Return the feature name in the tag of a Fréchet distance, without suffixes, or None for other tags."""
    rest = tag.removeprefix("frechet/")
    names = (
        card.stem.removeprefix("frechet_") for run in runs for card in run.folder.glob("evaluation/frechet_*.json")
    )
    return max((n for n in set(names) if rest.startswith(n)), key=len, default=None) if rest != tag else None


def _read_run(folder: Path, root: Path) -> TrainingRun:
    record = read_record(folder)
    name = str(folder.relative_to(root)) if folder != root else folder.name
    if record:
        name = ",".join(record["variants"].values()) or "base"
    seed = record.get("seed", _read_yaml(folder / "config.yaml").get("seed_everything"))
    finished = (folder / FINISHED).is_file() if record else None
    return TrainingRun(folder, name, seed, finished, read_curves(folder), record)


def _read_config(run: TrainingRun) -> dict[str, Any]:
    config = run.record.get("config") or _read_yaml(run.folder / "config.yaml")
    return {key: config.get(key, {}) for key in ("data", "model", "trainer")}


def _flatten(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    leaves: dict[str, Any] = {}
    for key, item in value.items():
        leaves |= _flatten(item, name if key == "init_args" else f"{name}.{key}".lstrip("."))
    return leaves


def _read_yaml(file: Path) -> dict[str, Any]:
    """Return the configuration of a run; nothing without a file."""
    if not file.exists():
        return {}
    content = read_yaml(file, name="config.yaml")
    if not isinstance(content, dict):
        given = "nothing" if content is None else f"a {type(content).__name__}"
        raise ValueError(f"{file} must contain sections such as model and data, got {given}: remove the folder")
    return dict(update_config(content))


def _default_goal(tag: str) -> str:
    return next((goal for prefix, goal in DEFAULT_TAGS.items() if tag.startswith(prefix)), "min")
