"""Parts of an experiment file, built without the rest of it: no data, no trainer."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from asyncdiff.cli.errors import ReportingParser, UsageError, explain, users_error
from asyncdiff.cli.errors.parser import upgraded
from asyncdiff.cli.errors.suggestions import near
from asyncdiff.cli.trusted_packages import gate, may_be_imported, refusal
from asyncdiff.noise.levels import AlongPath, LevelSampler

IMAGE_SIZE = 32  # AsyncDiffusion's default


class Experiment:
    """A YAML file of train.py, or a layer of one. Whatever is wrong in it is a ValueError with the file and the line.

    Args:
        file: the YAML file.
    """

    def __init__(self, file: Path):
        if file.is_dir():
            raise ValueError(f"experiments must be YAML files, got {file}, which is a folder: name its files")
        if not file.is_file():
            raise FileNotFoundError(f"experiments must be YAML files, got {file}, which does not exist: check it")
        self.file = file
        try:
            config = OmegaConf.create(upgraded(OmegaConf.to_container(OmegaConf.load(file))))
        except yaml.YAMLError as error:
            raise self._refused(UsageError(f"Problems parsing config\n{error}", ())) from error
        except (OSError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"{file} must be a YAML file, got something else: {error}") from error
        if not isinstance(config, DictConfig):
            raise ValueError(f"{file} must hold an experiment, got a list or nothing: model.levels is what is read")
        self.config = config

    @property
    def name(self) -> str:
        """The file's name; of a run's config.yaml the run's."""
        return self.file.resolve().parent.name if self.file.stem == "config" else self.file.stem

    def levels(self) -> LevelSampler:
        """The sampler at model.levels; an experiment without one has the model's default."""
        sampler: LevelSampler | None = self._built("model.levels", LevelSampler)
        if sampler is None:
            self._check_that_levels_are_left_out()
        return sampler or AlongPath()

    def grid(self) -> tuple[int, int] | None:
        """The level map's grid for model.network and model.image_size; None in a file without a network."""
        if self._value("model.network") is None:
            return None
        from asyncdiff.networks import dit, unet  # noqa: F401  a file may name its class without the module

        with torch.device("meta"):  # sizes without memory or time
            network = self._built("model.network", nn.Module)
        size = self._value("model.image_size")
        side = IMAGE_SIZE if size is None else size
        if not isinstance(side, int):
            raise ValueError(f"{self.file}: model.image_size must be int, got {side}")
        if not hasattr(network, "grid"):
            kind = type(network).__name__
            raise ValueError(f"{self.file}: model.network must have a method grid((h, w)), got {kind}")
        with self.named():
            grid: tuple[int, int] = network.grid((side, side))
        return grid

    def data(self) -> Any:
        """The data module at data."""
        from lightning.pytorch import LightningDataModule  # late: it takes seconds

        self.section("data")
        import datamodules  # noqa: F401  a file may name its class without the module

        return self._built("data", LightningDataModule)

    def section(self, key: str) -> dict[str, Any]:
        """The {class_path, init_args} at a dotted key, or the file's own, of a class that may be imported."""
        given = self._value(key)
        if given is None and "class_path" in self.config:
            key, given = "", self._value("")
        path = given.get("class_path") if isinstance(given, dict) else None
        if not isinstance(path, str):
            raise ValueError(f"{self.file}: {key} must have a class_path, got {given}: give a run's config.yaml")
        if "." in path and not may_be_imported(path):
            raise ValueError(f"{self.file}: {f'{key}.class_path'.lstrip('.')} {refusal(path)}")
        assert isinstance(given, dict)
        return given

    def _value(self, key: str) -> Any:
        """What stands at a dotted key, with its interpolations resolved; None if nothing does. All for an empty key."""
        try:
            value = OmegaConf.select(self.config, key) if key else self.config
            return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        except OmegaConfBaseException as error:
            raise self._refused(UsageError(f"interpolation: {error}", ())) from error

    def _built(self, key: str, kind: type) -> Any:
        """The object at a dotted key, None if there is none."""
        value = self._value(key)
        if value is None:
            return None
        parser = ReportingParser()
        parser.add_argument(f"--{key}", type=kind)
        with gate():  # which is open already, unless Python calls
            try:
                config = parser.parse_object({key: value})
            except UsageError as error:
                raise self._refused(error) from error
            with self.named():
                return parser.instantiate(config)[key]

    @contextmanager
    def named(self) -> Iterator[None]:
        """Names the file in refusals of what it describes."""
        try:
            yield
        except Exception as error:
            line = users_error(error)
            if line is None:
                raise
            raise ValueError(f"{self.file}: {line}") from error

    def _check_that_levels_are_left_out(self) -> None:
        """Refuse a file in which the sampler is misspelt, or that is no experiment."""
        model = OmegaConf.select(self.config, "model")
        keys = [str(key) for key in model] if OmegaConf.is_dict(model) else []
        if "levels" not in keys and (wrong := near("levels", keys, 0.75)):
            raise self._refused(UsageError(f"does not accept option 'model.{wrong}'", ["model.levels"]))
        if "levels" not in keys and "network" not in keys:
            raise ValueError(f"{self.file}: model.levels must be given in a file without model.network")

    def _refused(self, error: UsageError) -> ValueError:
        """A report as an error of this file."""
        line = explain(error, [str(self.file)])
        return ValueError(line if line.startswith(str(self.file)) else f"{self.file}: {line}")
