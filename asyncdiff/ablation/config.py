"""What an ablation consists of: a file that names a base, the variants of every axis and the seeds."""

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
    """What one variant of an axis changes: files layered on the base, and settings above all files."""

    files: tuple[Path, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Metric:
    """A tag of TensorBoard whose last value is compared.

    Attributes:
        tag: in the runs' event files.
        label: the head of its column.
        goal: "min" or "max", which of two values is better.
    """

    tag: str
    label: str
    goal: str

    @property
    def better(self) -> Any:
        """The function that picks the better of several values."""
        return min if self.goal == "min" else max


@dataclass(frozen=True)
class Trial:
    """One run of an ablation.

    Attributes:
        variants: name of the variant of every axis.
        seed: of everything random in the run.
        files: configuration files, later ones above earlier ones.
        settings: dotted keys with values, above all files.
    """

    variants: Mapping[str, str]
    seed: int
    files: tuple[Path, ...]
    settings: Mapping[str, Any]

    @property
    def variant(self) -> str:
        """The names of its variants, joined: what cells of several seeds share."""
        return ",".join(self.variants.values()) or "base"

    def folder(self, output: Path) -> Path:
        """Its run directory."""
        return output / self.variant / f"seed_{self.seed}"

    def words(self, output: Path) -> list[str]:
        """The words of train.py fit that run it."""
        words = [word for file in self.files for word in ("--config", str(file))]
        for key, value in self.settings.items():
            words += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
        return [*words, "--seed_everything", str(self.seed), "--trainer.default_root_dir", str(self.folder(output))]


@dataclass(frozen=True)
class Ablation:
    """Every combination of the variants of all axes, for every seed.

    Attributes:
        file: it was read from.
        base: configuration files that all runs share.
        seeds: one run of every combination each.
        axes: variants by name, of every axis.
        settings: dotted keys with values for all runs, below those of variants.
        metrics: what is compared.
    """

    file: Path
    base: tuple[Path, ...]
    seeds: tuple[int, ...]
    axes: Mapping[str, Mapping[str, Change]]
    settings: Mapping[str, Any]
    metrics: tuple[Metric, ...]

    @classmethod
    def read(cls, file: Path) -> "Ablation":
        """The ablation of a YAML file; ValueError in one line for whatever is wrong in it."""
        if not file.is_file():
            raise FileNotFoundError(f"ABLATION must be a YAML file, got {file}, which does not exist: check it")
        try:
            held = yaml.safe_load(file.read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{file} must be a YAML file, got something else: {error}") from error
        if not isinstance(held, dict):
            raise ValueError(f"{file} must hold the keys {', '.join(KEYS)}, got none: see experiments/ablations")
        if unknown := [key for key in held if key not in KEYS]:
            raise ValueError(f"{file}: keys must be among {', '.join(KEYS)}, got {unknown[0]}: correct it")
        here = file.parent
        axes = {str(name): _variants(f"{file}: axes.{name}", name, value, here) for name, value in _axes(file, held)}
        return cls(
            file=file,
            base=_files(f"{file}: base", held.get("base", []), here),
            seeds=_seeds(file, held.get("seeds", [0])),
            axes=axes,
            settings=_settings(f"{file}: set", held.get("set", {})),
            metrics=_metrics(file, held.get("metrics", {})),
        )

    @property
    def name(self) -> str:
        """The file's."""
        return self.file.stem

    def cells(self) -> list[Trial]:
        """All runs: seeds inside, so that every combination has one before any has two."""
        return [cell for seed in self.seeds for cell in self._of_seed(seed)]

    def _of_seed(self, seed: int) -> Iterator[Trial]:
        for chosen in itertools.product(*(variants.items() for variants in self.axes.values())):
            names = dict(zip(self.axes, (name for name, _ in chosen), strict=True))
            files = self.base + tuple(itertools.chain.from_iterable(change.files for _, change in chosen))
            settings = dict(self.settings)
            for _, change in chosen:
                settings |= change.settings
            yield Trial(names, seed, files, settings)


def _axes(file: Path, held: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    axes = held.get("axes", {})
    if not isinstance(axes, dict) or not axes:
        raise ValueError(f"{file}: axes must name at least one axis with its variants, got {axes}: add one")
    yield from axes.items()


def _variants(where: str, axis: Any, value: Any, here: Path) -> dict[str, Change]:
    """The variants of an axis: a mapping of names to changes, or a list of values of the key that names the axis."""
    if isinstance(value, list):
        changes = {_spelt(item): Change(settings={str(axis): item}) for item in value}
        if len(changes) < len(value):
            raise ValueError(f"{where} must list different values, got {value}: remove the repeated one")
    elif isinstance(value, dict):
        changes = {str(name): _change(f"{where}.{name}", change, here) for name, change in value.items()}
    else:
        raise ValueError(f"{where} must map names to changes or list values of a key, got {value}: give one of these")
    if not changes:
        raise ValueError(f"{where} must have at least one variant, got none: add one")
    for name in changes:
        if not re.fullmatch(r"[\w.+=-]+", name) or name.startswith("."):
            raise ValueError(f"{where} must have variants that can be folders, got {name!r}: use letters and digits")
    return changes


def _change(where: str, value: Any, here: Path) -> Change:
    """A file, settings, or a list of both."""
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
    """Files named relative to the ablation's own folder."""
    files = [here / str(name) for name in (value if isinstance(value, list) else [value])]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{where} must name YAML files of train.py, got {file}, which does not exist")
    return tuple(file.resolve() for file in files)


def _settings(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be a file or dotted keys with values, got {value}: model.learning_rate: 1e-4")
    for key in value:
        if str(key).split(".")[0] not in ("data", "model", "trainer", "vars"):
            raise ValueError(
                f"{where} must set keys of data, model, trainer or vars, got {key}: seeds are listed apart"
            )
    return {str(key): item for key, item in value.items()}


def _seeds(file: Path, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(seed, int) and seed >= 0 for seed in value):
        raise ValueError(f"{file}: seeds must list whole numbers from 0, got {value}: [0, 1, 2]")
    if len(set(value)) < len(value):
        raise ValueError(f"{file}: seeds must differ, got {value}: remove the repeated one")
    return tuple(value)


def _metrics(file: Path, value: Any) -> tuple[Metric, ...]:
    if not isinstance(value, dict) or not value:
        raise ValueError(f"{file}: metrics must name the tags to compare, got {value}: val/loss: min")
    metrics = []
    for tag, how in value.items():
        how = {"goal": how} if isinstance(how, str) else how
        if not isinstance(how, dict) or set(how) - {"goal", "label"} or how.get("goal") not in GOALS:
            raise ValueError(
                f"{file}: metrics.{tag} must be min, max or {{goal, label}}, got {how}: say which is better"
            )
        metrics.append(Metric(str(tag), str(how.get("label", tag)), how["goal"]))
    return tuple(metrics)


def _spelt(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
