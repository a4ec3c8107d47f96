"""Read experiment files and build single parts of them, without data or trainer."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from asyncdiff.cli.errors import ReportingParser, UsageError, explain, user_error_message
from asyncdiff.cli.errors.parser import with_current_names
from asyncdiff.cli.errors.suggestions import nearest_name
from asyncdiff.cli.trusted_packages import may_be_imported, refusal_message, restrict_imports
from asyncdiff.noise.level_samplers import AlongPath, LevelSampler

IMAGE_SIZE = 32  # AsyncDiffusion's default


class Experiment:
    """YAML file of train.py, or a layer of one; errors in it are raised as ValueError with file and line.

    Args:
        file: the YAML file.
    """

    def __init__(self, file: Path):
        if file.is_dir():
            raise ValueError(f"experiments must be YAML files, got the folder {file}: name the files in it")
        if not file.is_file():
            raise FileNotFoundError(f"experiments must be YAML files, got {file}, which does not exist: check it")
        self.file = file
        try:
            config = OmegaConf.create(with_current_names(OmegaConf.to_container(OmegaConf.load(file))))
        except yaml.YAMLError as error:
            raise self._located(UsageError(f"Problems parsing config\n{error}", ())) from error
        except (OSError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"{file} must be a YAML file, got something else: {error}") from error
        if not isinstance(config, DictConfig):
            raise ValueError(f"{file} must contain an experiment, got a list or nothing: add sections such as model")
        self.config = config

    @property
    def name(self) -> str:
        """Name of the file, or of the run directory for a run's config.yaml."""
        return self.file.resolve().parent.name if self.file.stem == "config" else self.file.stem

    def levels(self) -> LevelSampler:
        """Build the level sampler at model.levels; without one, return the model's default."""
        sampler: LevelSampler | None = self._build("model.levels", LevelSampler)
        if sampler is None:
            self._check_levels_omitted()
        return sampler or AlongPath()

    def grid(self) -> tuple[int, int] | None:
        """Return (rows, columns) of the level maps of model.network at model.image_size; None without a network."""
        if self._value("model.network") is None:
            return None
        from asyncdiff.networks import dit, unet  # noqa: F401  files can name the classes without their module

        with torch.device("meta"):  # no memory or initialization
            network = self._build("model.network", nn.Module)
        size = self._value("model.image_size")
        side = IMAGE_SIZE if size is None else size
        if not isinstance(side, int):
            raise ValueError(f"{self.file}: model.image_size must be int, got {side}")
        if not hasattr(network, "grid"):
            kind = type(network).__name__
            raise ValueError(f"{self.file}: model.network must have a method grid((h, w)), got {kind}")
        with self.name_in_errors():
            grid: tuple[int, int] = network.grid((side, side))
        return grid

    def data(self) -> Any:
        """Build the data module at data."""
        from lightning.pytorch import LightningDataModule  # imported late because it takes seconds

        self.section("data")
        import datamodules  # noqa: F401  files can name the classes without their module

        return self._build("data", LightningDataModule)

    def section(self, key: str) -> dict[str, Any]:
        """Return the object config at a dotted key, or the whole file if it is one; the class must be allowed."""
        config = self._value(key)
        if config is None and "class_path" in self.config:
            key, config = "", self._value("")
        path = config.get("class_path") if isinstance(config, dict) else None
        if not isinstance(path, str):
            raise ValueError(f"{self.file}: {key} must have a class_path, got {config}: name a run's config.yaml")
        if "." in path and not may_be_imported(path):
            raise ValueError(f"{self.file}: {f'{key}.class_path'.lstrip('.')} {refusal_message(path)}")
        assert isinstance(config, dict)
        return config

    def _value(self, key: str) -> Any:
        """Return the value at a dotted key, interpolations resolved, or None; an empty key means the whole file."""
        try:
            value = OmegaConf.select(self.config, key) if key else self.config
            return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        except OmegaConfBaseException as error:
            raise self._located(UsageError(f"interpolation: {error}", ())) from error

    def _build(self, key: str, kind: type) -> Any:
        """Build the object at a dotted key, None if there is none."""
        value = self._value(key)
        if value is None:
            return None
        parser = ReportingParser()
        parser.add_argument(f"--{key}", type=kind)
        with restrict_imports():  # already active unless this is called from Python
            try:
                config = parser.parse_object({key: value})
            except UsageError as error:
                raise self._located(error) from error
            with self.name_in_errors():
                return parser.instantiate(config)[key]

    @contextmanager
    def name_in_errors(self) -> Iterator[None]:
        """Prefix user errors raised inside with the file's name."""
        try:
            yield
        except Exception as error:
            message = user_error_message(error)
            if message is None:
                raise
            raise ValueError(f"{self.file}: {message}") from error

    def _check_levels_omitted(self) -> None:
        """Raise ValueError if the key model.levels is misspelled, or if the file is not an experiment."""
        model = OmegaConf.select(self.config, "model")
        keys = [str(key) for key in model] if OmegaConf.is_dict(model) else []
        if "levels" not in keys and (wrong := nearest_name("levels", keys, 0.75)):
            raise self._located(UsageError(f"does not accept option 'model.{wrong}'", ["model.levels"]))
        if "levels" not in keys and "network" not in keys:
            raise ValueError(f"{self.file}: model.levels must be given in a file without model.network")

    def _located(self, error: UsageError) -> ValueError:
        """Convert a parser error to a ValueError that names this file."""
        message = explain(error, [str(self.file)])
        return ValueError(message if message.startswith(str(self.file)) else f"{self.file}: {message}")
