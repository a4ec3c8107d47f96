"""Read the definition of an ablation from a YAML file: a base, the variants along each axis, and seeds."""

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asyncdiff.checkpoints.moved_arguments import update_keys
from asyncdiff.checkpoints.old_names import warn_of_old_names
from asyncdiff.checks import at_least
from asyncdiff.yaml_files import read_yaml

KEYS = ("base", "seeds", "axes", "set", "metrics")
MAX_TRIALS = 10_000  # combinations of variants and seeds
GOALS = ("min", "max")


@dataclass(frozen=True)
class Change:
    """Changes that define a variant: config files layered on the base, and settings that override all files."""

    files: tuple[Path, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Metric:
    """Metric to compare: the final value of a TensorBoard tag.

    Attributes:
        tag: tag in the event files of the runs.
        label: column header in tables.
        goal: "min" if lower is better, "max" if higher is better.
    """

    tag: str
    label: str
    goal: str

    @property
    def best(self) -> Any:
        """Function that picks the best of several values: min or max."""
        return min if self.goal == "min" else max


@dataclass(frozen=True)
class Trial:
    """One run of an ablation.

    Attributes:
        variants: name of the variant along each axis.
        seed: seed of the run.
        files: config files; later ones override earlier ones.
        settings: values by dotted key; they override all files.
    """

    variants: Mapping[str, str]
    seed: int
    files: tuple[Path, ...]
    settings: Mapping[str, Any]

    @property
    def variant(self) -> str:
        """Names of the variants joined by commas, the same for all seeds."""
        return ",".join(self.variants.values()) or "base"

    def folder(self, output: Path) -> Path:
        """Return the run directory of this trial."""
        return output / self.variant / f"seed_{self.seed}"

    def argv(self, output: Path) -> list[str]:
        """Return the command line arguments for train.py that run this trial."""
        argv = [argument for file in self.files for argument in ("--config", str(file))]
        for key, value in self.settings.items():
            argv += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
        return [*argv, "--seed_everything", str(self.seed), "--trainer.default_root_dir", str(self.folder(output))]


@dataclass(frozen=True)
class Ablation:
    """Grid of trials: every combination of the variants of all axes, with every seed.

    Attributes:
        file: YAML file that defines the ablation.
        base: config files shared by all trials.
        seeds: seeds with which every combination is run.
        axes: changes by axis and name of the variant.
        settings: values by dotted key for all trials; variants override them.
        metrics: metrics to compare.
    """

    file: Path
    base: tuple[Path, ...]
    seeds: tuple[int, ...]
    axes: Mapping[str, Mapping[str, Change]]
    settings: Mapping[str, Any]
    metrics: tuple[Metric, ...]

    @classmethod
    def read(cls, file: Path) -> "Ablation":
        """Read an ablation from a YAML file; raise a one-line ValueError if its content is invalid."""
        if not file.exists():
            raise FileNotFoundError(f"ABLATION {file} is not a file: check the path")
        content = read_yaml(file, name="ABLATION")
        if not isinstance(content, dict):
            given = "nothing" if content is None else f"a {type(content).__name__}"
            raise ValueError(
                f"{file} must be a mapping with the keys {', '.join(KEYS)}, got {given}: "
                "see experiments/ablations for examples"
            )
        if unknown := [key for key in content if key not in KEYS]:
            raise ValueError(f"{file}: unknown key {unknown[0]}: choose from {', '.join(KEYS)}")
        content, here = _with_current_keys(file, content), file.parent
        axes = content.get("axes", {})
        if not isinstance(axes, dict) or not axes:
            raise ValueError(
                f"{file}: axes must map at least one axis to its variants, got {axes}: see experiments/ablations"
            )
        return cls(
            file=file,
            base=_resolve_files(f"{file}: base", content.get("base", []), here),
            seeds=_parse_seeds(file, content.get("seeds", [0])),
            axes={str(name): _parse_variants(f"{file}: axes.{name}", name, axes[name], here) for name in axes},
            settings=_parse_settings(f"{file}: set", content.get("set", {})),
            metrics=_parse_metrics(file, content.get("metrics", {})),
        )

    @property
    def name(self) -> str:
        """Name of the file without its extension."""
        return self.file.stem

    def trials(self) -> list[Trial]:
        """Return all trials ordered by seed, so that every combination is run once before any is run twice."""
        count = len(self.seeds) * math.prod(map(len, self.axes.values()))
        at_least(f"{self.file}: number of trials", count, 1, "drop an axis, variants or seeds", MAX_TRIALS)
        combinations = list(itertools.product(*(variants.items() for variants in self.axes.values())))
        return [self._trial(seed, combination) for seed in self.seeds for combination in combinations]

    def _trial(self, seed: int, combination: Sequence[tuple[str, Change]]) -> Trial:
        variants = dict(zip(self.axes, (name for name, _ in combination), strict=True))
        files, settings = self.base, dict(self.settings)
        for _, change in combination:
            files += change.files
            settings |= change.settings
        return Trial(variants, seed, files, settings)


def _with_current_keys(file: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Replace keys of earlier versions in axes and settings, with a warning."""
    replaced: dict[str, str] = {}
    try:
        current = {key: update_keys(content[key], replaced) for key in ("axes", "set") if key in content}
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    warn_of_old_names(replaced)
    return content | current


def _parse_variants(where: str, axis: Any, value: Any, here: Path) -> dict[str, Change]:
    """Parse the variants along an axis: changes by name, or a list of values for the key that names the axis."""
    if isinstance(value, list):
        names = [item if isinstance(item, str) else json.dumps(item) for item in value]
        changes = {name: Change(settings={str(axis): item}) for name, item in zip(names, value, strict=True)}
        if len(changes) < len(value):
            raise ValueError(f"{where} lists a value twice, got {value}: remove the duplicate")
    elif isinstance(value, dict):
        changes = {str(name): _parse_change(f"{where}.{name}", change, here) for name, change in value.items()}
    else:
        raise ValueError(
            f"{where} must map names to changes or list values of a key, got {value}: see experiments/ablations"
        )
    if not changes:
        raise ValueError(f"{where} has no variants: add at least one")
    for name in changes:
        if not re.fullmatch(r"[\w.+=-]+", name) or name.startswith("."):
            raise ValueError(
                f"{where}: variants must be valid folder names, got {name!r}: use letters, digits and . + = _ -"
            )
    return changes


def _parse_change(where: str, value: Any, here: Path) -> Change:
    """Parse the changes of a variant: a file, settings, or a list of both."""
    parts = value if isinstance(value, list) else [] if value is None else [value]
    files: tuple[Path, ...] = ()
    settings: dict[str, Any] = {}
    for part in parts:
        if isinstance(part, str):
            files += _resolve_files(where, part, here)
        else:
            settings |= _parse_settings(where, part)
    return Change(files, settings)


def _resolve_files(where: str, value: Any, here: Path) -> tuple[Path, ...]:
    """Return absolute paths of files that are named relative to the folder of the ablation."""
    files = [here / str(name) for name in (value if isinstance(value, list) else [value])]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(
                f"{where} must name YAML files for train.py, but {file} is not a file: check the path"
            )
    return tuple(file.resolve() for file in files)


def _parse_settings(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(
            f"{where} must be a file or map dotted keys to values, got {value}: "
            "write model.optimizer.learning_rate: 1e-4, for example"
        )
    for key in value:
        if str(key).split(".")[0] not in ("data", "model", "trainer", "vars"):
            raise ValueError(
                f"{where} can only set keys of data, model, trainer or vars, got {key}: list seeds under `seeds`"
            )
    return {str(key): item for key, item in value.items()}


def _parse_seeds(file: Path, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(seed, int) and seed >= 0 for seed in value):
        raise ValueError(f"{file}: seeds must be a list of integers from 0, got {value}: write [0, 1, 2], for example")
    if len(set(value)) < len(value):
        raise ValueError(f"{file}: seeds must be distinct, got {value}: remove the duplicate")
    return tuple(value)


def _parse_metrics(file: Path, value: Any) -> tuple[Metric, ...]:
    if not isinstance(value, dict) or not value:
        raise ValueError(
            f"{file}: metrics must map the tags to compare to min or max, got {value}: write val/loss: min, for example"
        )
    metrics = []
    for tag, entry in value.items():
        entry = {"goal": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or set(entry) - {"goal", "label"} or entry.get("goal") not in GOALS:
            raise ValueError(
                f"{file}: metrics.{tag} must be min, max or {{goal, label}}, got {entry}: write min if lower is better"
            )
        metrics.append(Metric(str(tag), str(entry.get("label", tag)), entry["goal"]))
    return tuple(metrics)
