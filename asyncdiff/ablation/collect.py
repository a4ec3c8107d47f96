"""Runs as they are found on disk, whether an ablation made them or a person."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from asyncdiff.ablation.config import Metric
from asyncdiff.ablation.launch import FINISHED, RECORD
from asyncdiff.ablation.tensorboard import EVENTS, Curve, read_curves
from asyncdiff.checkpoints.old_names import current
from asyncdiff.evaluation.result_card import read_card

# Tags that are compared where no ablation says which: the beginning of each, and which value is better.
COMPARED = {"frechet/": "min", "bits_per_dim/": "min", "val/loss": "min", "val/error_constant": "min"}
ELSEWHERE = ("hardware", "torch", "commit", "step", "measurement")  # keys of protocols that a report tells anyway
NOT_COMPARED = ("_real",)  # the ends of tags that are the same for every model


@dataclass(frozen=True)
class FoundRun:
    """A run directory.

    Attributes:
        folder: where it lies.
        variant: what it shares with runs of other seeds.
        seed: of everything random in it.
        finished: whether it came to its end; None where nothing tells.
        curves: all its scalars.
        record: what an ablation wrote of it, empty for others.
    """

    folder: Path
    variant: str
    seed: int | None
    finished: bool | None
    curves: Mapping[str, Curve]
    record: Mapping[str, Any]

    def last(self, metric: Metric) -> float | None:
        """The metric's last value, None where it was not logged."""
        curve = self.curves.get(metric.tag)
        return curve[-1][1] if curve else None


def find_runs(places: Sequence[Path]) -> list[FoundRun]:
    """The runs at and below the places; ValueError where there are none."""
    found = []
    for place in places:
        if not place.is_dir():
            raise FileNotFoundError(f"RUNS must be folders of runs, got {place}, which is none: check the path")
        folders = sorted({file.parent for name in ("config.yaml", RECORD) for file in place.rglob(name)})
        if not folders:
            raise ValueError(f"RUNS must hold run directories with a config.yaml, got {place} without any")
        found += [_run(folder, place) for folder in folders]
    return found


def comparable(runs: Sequence[FoundRun]) -> tuple[list[FoundRun], list[str]]:
    """The runs that can be compared, and a line about each that cannot: unfinished, or without event files."""
    good, told = [], []
    for run in runs:
        if not run.curves:
            told.append(f"{run.folder}: no event files ({EVENTS}): was it run with a TensorBoardLogger?")
        elif run.finished is False:
            told.append(f"{run.folder}: not finished, left out of tables and curves")
        else:
            good.append(run)
    if not good:
        raise ValueError(f"RUNS must hold a finished run, got none of {len(runs)}: {told[0]}")
    return good, told


def metrics_of(runs: Sequence[FoundRun], wanted: Sequence[str] = ()) -> list[Metric]:
    """What is compared: the tags asked for, else what the ablation says, else the usual ones that any run logged."""
    tags = list(dict.fromkeys(tag for run in runs for tag in run.curves))
    if wanted:
        if missing := [tag for tag in wanted if tag not in tags]:
            raise ValueError(
                f"--metrics must be logged by a run, got {missing[0]}: there are {', '.join(sorted(tags))}"
            )
        return [Metric(tag, tag, _goal(tag)) for tag in wanted]
    told = {entry["tag"]: Metric(**entry) for run in runs for entry in run.record.get("metrics", [])}
    if told:
        return list(told.values())
    usual = [tag for tag in tags if tag.startswith(tuple(COMPARED)) and not tag.endswith(NOT_COMPARED)]
    if not usual:
        raise ValueError(
            f"runs must log {', '.join(COMPARED)}, got {', '.join(sorted(tags))}: name tags with --metrics"
        )
    return [Metric(tag, tag, _goal(tag)) for tag in sorted(usual)]


def by_variant(runs: Sequence[FoundRun]) -> dict[str, list[FoundRun]]:
    """The runs of every variant, in the order of the ablation, else in that in which they were found."""
    groups: dict[str, list[FoundRun]] = {}
    for run in sorted(runs, key=lambda run: run.record.get("number", 0)):
        groups.setdefault(run.variant, []).append(run)
    return groups


def values(runs: Sequence[FoundRun], metric: Metric) -> list[float]:
    """The last values of the runs that logged the metric."""
    return [value for run in runs if (value := run.last(metric)) is not None]


def shared_and_different(runs: Sequence[FoundRun]) -> tuple[dict[str, Any], list[str]]:
    """What all runs have in common of software and settings, and the dotted keys in which they differ."""
    return _common([_leaves({"software": run.record.get("software", {}), **_config(run)}) for run in runs])


def measurements(runs: Sequence[FoundRun], metrics: Sequence[Metric]) -> dict[str, tuple[dict[str, Any], list[str]]]:
    """What each Fréchet distance was measured with, by its tag: common to all runs, and the dotted keys that differ.

    A run without a card of it, as one of an earlier version, differs in the key "card".
    """
    found = {}
    names = sorted({tag for metric in metrics if (tag := _distance(metric.tag, runs))})
    for name in names:
        cards = [run.folder / "evaluation" / f"frechet_{name}.json" for run in runs]
        protocols = [_leaves(read_card(card)["protocol"]) if card.is_file() else {"card": "none"} for card in cards]
        found[f"frechet/{name}"] = _common([{k: v for k, v in p.items() if k not in ELSEWHERE} for p in protocols])
    return found


def mean_and_deviation(numbers: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and the standard deviation of two and more."""
    return statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else None


def _common(described: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """What all have in common, and the keys in which they differ."""
    keys = list(dict.fromkeys(key for leaves in described for key in leaves))
    same = {key: described[0].get(key) for key in keys if len({repr(leaves.get(key)) for leaves in described}) == 1}
    return same, [key for key in keys if key not in same]


def _distance(tag: str, runs: Sequence[FoundRun]) -> str | None:
    """The features' name in the tag of a Fréchet distance, which may go on after it; None for other tags."""
    rest = tag.removeprefix("frechet/")
    names = (
        card.stem.removeprefix("frechet_") for run in runs for card in run.folder.glob("evaluation/frechet_*.json")
    )
    return max((n for n in set(names) if rest.startswith(n)), key=len, default=None) if rest != tag else None


def _run(folder: Path, place: Path) -> FoundRun:
    record = _read(folder / RECORD)
    name = str(folder.relative_to(place)) if folder != place else folder.name
    if record:
        name = ",".join(record["variants"].values()) or "base"
    seed = record.get("seed", _read_yaml(folder / "config.yaml").get("seed_everything"))
    finished = (folder / FINISHED).is_file() if record else None
    return FoundRun(folder, name, seed, finished, read_curves(folder), record)


def _config(run: FoundRun) -> dict[str, Any]:
    config = run.record.get("config") or _read_yaml(run.folder / "config.yaml")
    return {key: config.get(key, {}) for key in ("data", "model", "trainer")}


def _leaves(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    leaves: dict[str, Any] = {}
    for key, item in value.items():
        leaves |= _leaves(item, name if key == "init_args" else f"{name}.{key}".lstrip("."))
    return leaves


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        held = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}; remove it and run the ablation again") from error
    if not isinstance(held, dict) or not {"variants", "seed"} <= set(held):
        raise ValueError(f"{file} must be what an ablation of this version writes, got other keys: run it again")
    return dict(current(held))


def _read_yaml(file: Path) -> dict[str, Any]:
    held = yaml.safe_load(file.read_text()) if file.is_file() else None
    return current(held) if isinstance(held, dict) else {}


def _goal(tag: str) -> str:
    return next((goal for beginning, goal in COMPARED.items() if tag.startswith(beginning)), "min")
