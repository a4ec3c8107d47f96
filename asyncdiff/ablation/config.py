"""Definition of an ablation: a YAML file with a base, the variants of every axis, and seeds."""

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

KEYS = ("base", "seeds", "axes", "set", "metrics")
GOALS = ("min", "max")


@dataclass(frozen=True)
class Change:
    """Changes of one variant: config files layered on the base, and settings that override all files."""

    files: tuple[Path, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Metric:
    """TensorBoard tag whose final value is compared.

    Attributes:
        tag: tag in the event files of the runs.
        label: header of its column in tables.
        goal: "min" or "max": whether lower or higher is better.
    """

    tag: str
    label: str
    goal: str

    @property
    def best(self) -> Any:
        """Function that returns the best of several values: min or max."""
        return min if self.goal == "min" else max


@dataclass(frozen=True)
class Trial:
    """One run of an ablation.

    Attributes:
        variants: name of the variant on every axis.
        seed: seed of the run.
        files: config files; later ones override earlier ones.
        settings: dotted keys with values, which override all files.
    """

    variants: Mapping[str, str]
    seed: int
    files: tuple[Path, ...]
    settings: Mapping[str, Any]

    @property
    def variant(self) -> str:
        """Joined names of the variants, the same for all seeds."""
        return ",".join(self.variants.values()) or "base"

    def folder(self, output: Path) -> Path:
        """Return the run directory of this trial."""
        return output / self.variant / f"seed_{self.seed}"

    def argv(self, output: Path) -> list[str]:
        """Return the arguments of `train.py fit` for this trial."""
        argv = [argument for file in self.files for argument in ("--config", str(file))]
        for key, value in self.settings.items():
            argv += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
        return [*argv, "--seed_everything", str(self.seed), "--trainer.default_root_dir", str(self.folder(output))]


@dataclass(frozen=True)
class Ablation:
    """Grid of trials: every combination of the variants of all axes, with every seed.

    Attributes:
        file: YAML file of the ablation.
        base: config files shared by all trials.
        seeds: seeds of every combination.
        axes: variants by name for every axis.
        settings: dotted keys with values for all trials; variants override them.
        metrics: metrics that are compared.
    """

    file: Path
    base: tuple[Path, ...]
    seeds: tuple[int, ...]
    axes: Mapping[str, Mapping[str, Change]]
    settings: Mapping[str, Any]
    metrics: tuple[Metric, ...]

    @classmethod
    def read(cls, file: Path) -> "Ablation":
        """Read an ablation from a YAML file; raise a one-line ValueError for any mistake in it."""
        if not file.is_file():
            raise FileNotFoundError(f"ABLATION must be a YAML file, got {file}, which does not exist: check the path")
        try:
            content = yaml.safe_load(file.read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{file} must be a YAML file, got something else: {error}") from error
        if not isinstance(content, dict):
            raise ValueError(f"{file} must contain the keys {', '.join(KEYS)}, got none: see experiments/ablations")
        if unknown := [key for key in content if key not in KEYS]:
            raise ValueError(f"{file}: keys must be among {', '.join(KEYS)}, got {unknown[0]}: correct it")
        here = file.parent
        axes = {str(name): _variants(f"{file}: axes.{name}", name, value, here) for name, value in _axes(file, content)}
        return cls(
            file=file,
            base=_files(f"{file}: base", content.get("base", []), here),
            seeds=_seeds(file, content.get("seeds", [0])),
            axes=axes,
            settings=_settings(f"{file}: set", content.get("set", {})),
            metrics=_metrics(file, content.get("metrics", {})),
        )

    @property
    def name(self) -> str:
        """Name of the file, without extension."""
        return self.file.stem

    def trials(self) -> list[Trial]:
        """Return all trials, seed by seed, so that every combination has one run before any has two."""
        return [trial for seed in self.seeds for trial in self._of_seed(seed)]

    def _of_seed(self, seed: int) -> Iterator[Trial]:
        for combination in itertools.product(*(variants.items() for variants in self.axes.values())):
            names = dict(zip(self.axes, (name for name, _ in combination), strict=True))
            files = self.base + tuple(itertools.chain.from_iterable(change.files for _, change in combination))
            settings = dict(self.settings)
            for _, change in combination:
                settings |= change.settings
            yield Trial(names, seed, files, settings)


def _axes(file: Path, content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    axes = content.get("axes", {})
    if not isinstance(axes, dict) or not axes:
        raise ValueError(f"{file}: axes must name at least one axis with its variants, got {axes}: add one")
    yield from axes.items()


def _variants(where: str, axis: Any, value: Any, here: Path) -> dict[str, Change]:
    """Read the variants of an axis: names with changes, or a list of values of the key that names the axis."""
    if isinstance(value, list):
        changes = {_variant_name(item): Change(settings={str(axis): item}) for item in value}
        if len(changes) < len(value):
            raise ValueError(f"{where} must list different values, got {value}: remove the repeated one")
    elif isinstance(value, dict):
        changes = {str(name): _change(f"{where}.{name}", change, here) for name, change in value.items()}
    else:
        raise ValueError(f"{where} must map names to changes or list values of a key, got {value}: use one of these")
    if not changes:
        raise ValueError(f"{where} must have at least one variant, got none: add one")
    for name in changes:
        if not re.fullmatch(r"[\w.+=-]+", name) or name.startswith("."):
            raise ValueError(
                f"{where} must have variants that are valid folder names, got {name!r}: use letters and digits"
            )
    return changes


def _change(where: str, value: Any, here: Path) -> Change:
    """Read the changes of a variant: a file, settings, or a list of both."""
    parts = value if isinstance(value, list) else [] if value is None else [value]
    files: tuple[Path, ...] = ()
    settings: dict[str, Any] = {}
    for part in parts:
        if isinstance(part, str):
            files += _files(where, part, here)
        else:
            settings |= _settings(where, part)
    return Change(files, settings)


def _files(where: str, value: Any, here: Path) -> tuple[Path, ...]:
    """Resolve file names relative to the folder of the ablation."""
    files = [here / str(name) for name in (value if isinstance(value, list) else [value])]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(
                f"{where} must name YAML files of train.py, got {file}, which does not exist: check the path"
            )
    return tuple(file.resolve() for file in files)


def _settings(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(
            f"{where} must be a file or dotted keys with values, got {value}: model.learning_rate: 1e-4, for example"
        )
    for key in value:
        if str(key).split(".")[0] not in ("data", "model", "trainer", "vars"):
            raise ValueError(
                f"{where} must set keys of data, model, trainer or vars, got {key}: seeds have a key of their own"
            )
    return {str(key): item for key, item in value.items()}


def _seeds(file: Path, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(seed, int) and seed >= 0 for seed in value):
        raise ValueError(f"{file}: seeds must list whole numbers from 0, got {value}: write [0, 1, 2], for example")
    if len(set(value)) < len(value):
        raise ValueError(f"{file}: seeds must differ, got {value}: remove the repeated one")
    return tuple(value)


def _metrics(file: Path, value: Any) -> tuple[Metric, ...]:
    if not isinstance(value, dict) or not value:
        raise ValueError(
            f"{file}: metrics must name the tags to compare, got {value}: write val/loss: min, for example"
        )
    metrics = []
    for tag, entry in value.items():
        entry = {"goal": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or set(entry) - {"goal", "label"} or entry.get("goal") not in GOALS:
            raise ValueError(
                f"{file}: metrics.{tag} must be min, max or {{goal, label}}, got {entry}: state which is better"
            )
        metrics.append(Metric(str(tag), str(entry.get("label", tag)), entry["goal"]))
    return tuple(metrics)


def _variant_name(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
