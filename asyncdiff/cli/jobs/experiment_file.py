"""Read experiment files and build single objects from them, such as the level sampler or the data module."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from asyncdiff.cli.errors import ReportingParser, UsageError, user_error_message
from asyncdiff.cli.errors.diagnosis import explain_entries
from asyncdiff.cli.errors.entries import file_entries
from asyncdiff.cli.errors.interpolations import check_interpolations
from asyncdiff.cli.errors.parser import UnexplainedError, with_current_names
from asyncdiff.cli.errors.suggestions import nearest_name
from asyncdiff.cli.run_directory import run_of_config
from asyncdiff.cli.trusted_packages import may_be_imported, refusal_message, restrict_imports
from asyncdiff.model import IMAGE_SIZE
from asyncdiff.noise.level_samplers import AlongPath, LevelSampler
from asyncdiff.yaml_files import read_yaml

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule


class Experiment:
    """YAML file for train.py, complete or only a layer. Errors in it are raised as ValueError with file and line.

    Args:
        file: path of the YAML file.
    """

    def __init__(self, file: Path):
        if file.is_dir():
            raise ValueError(f"experiments must be YAML files, got the folder {file}: list the files in it")
        if not file.exists():
            raise FileNotFoundError(f"experiments must be YAML files, got {file}, which does not exist: check the path")
        self.file = file
        content = read_yaml(file, name="experiments")
        if not isinstance(content, dict):
            given = "nothing" if content is None else "a list" if isinstance(content, list) else content
            raise ValueError(f"{file} must contain sections such as model and data, got {given}: see experiments")
        try:
            config = with_current_names(content)
            if run := run_of_config(file, config):
                config["trainer"]["default_root_dir"] = str(run)
            check_interpolations(config)
            self.config: DictConfig = OmegaConf.create(config)
        except (OmegaConfBaseException, UnexplainedError) as error:
            raise self._located(ReportingParser(), error) from error

    @property
    def name(self) -> str:
        """Name of the file without its suffix; for a run's config.yaml, the name of the run directory."""
        return self.file.resolve().parent.name if self.file.stem == "config" else self.file.stem

    def levels(self) -> LevelSampler:
        """Build the level sampler configured at model.levels, by default the model's default."""
        sampler: LevelSampler | None = self._build("model.levels", LevelSampler)
        if sampler is None:
            self._check_levels_omitted()
        return sampler or AlongPath()

    def grid(self) -> tuple[int, int] | None:
        """Return (rows, columns) of the network's level maps at model.image_size; None without model.network."""
        if self._value("model.network") is None:
            return None
        from asyncdiff.networks import dit, unet  # noqa: F401  lets files use bare class names

        with torch.device("meta"):  # avoids memory and initialization
            network = self._build("model.network", nn.Module)
        size = self._value("model.image_size")
        side = IMAGE_SIZE if size is None else size
        if not isinstance(side, int):
            raise ValueError(f"{self.file}: model.image_size must be an integer, got {side}")
        if not hasattr(network, "grid"):
            kind = type(network).__name__
            raise ValueError(f"{self.file}: model.network must have a method grid((h, w)), got {kind}")
        with self.name_in_errors():
            grid: tuple[int, int] = network.grid((side, side))
        return grid

    def data(self) -> "LightningDataModule":
        """Build the data module configured in the section data."""
        from lightning.pytorch import LightningDataModule  # imported late because it takes seconds

        self.section("data")
        from datamodules import ImageDataModule  # noqa: F401  lets files use bare class names

        built: LightningDataModule = self._build("data", LightningDataModule)
        return built

    def section(self, key: str) -> dict[str, Any]:
        """Return the object config at a dotted key, or the entire file if it is one; raise ValueError otherwise."""
        config = self._value(key)
        if config is None and "class_path" in self.config:
            key, config = "", self._value("")
        if not isinstance(config, dict) or not isinstance(path := config.get("class_path"), str):
            raise ValueError(
                f"{self.file}: {key} must have a class_path, got {config}: use a run's config.yaml, for example"
            )
        if "." in path and not may_be_imported(path):
            raise ValueError(f"{self.file}: {f'{key}.class_path'.lstrip('.')} {refusal_message(path)}")
        return config

    def _value(self, key: str) -> Any:
        """Return the value at a dotted key, with interpolations resolved, or None; an empty key selects the file."""
        try:
            value = OmegaConf.select(self.config, key) if key else self.config
            return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        except OmegaConfBaseException as error:
            raise self._located(ReportingParser(), error) from error

    def _build(self, key: str, kind: type) -> Any:
        """Build the object configured at a dotted key; return None if the key is missing."""
        value = self._value(key)
        if value is None:
            return None
        parser = ReportingParser()
        parser.add_argument(f"--{key}", type=kind)
        with restrict_imports():  # already active unless this is called from Python
            try:
                config = parser.parse_object({key: value})
            except UsageError as error:
                raise self._located(parser, error, key) from error
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
        """Raise ValueError if model.levels is misspelled, or missing from a file without model.network."""
        parser = ReportingParser()
        parser.add_argument("--model.levels")
        model = OmegaConf.select(self.config, "model")
        keys = [str(key) for key in model] if OmegaConf.is_dict(model) else []
        if "levels" not in keys and (wrong := nearest_name("levels", keys, 0.75)):
            raise self._located(parser, ValueError(), f"model.{wrong}")
        if "levels" not in keys and "network" not in keys:
            raise ValueError(f"{self.file}: model.levels is missing: a file without model.network needs it")

    def _located(self, parser: ReportingParser, error: Exception, key: str = "") -> ValueError:
        """Explain why a parser refuses the value at a key, in one line that begins with the file."""
        entries = [entry for entry in file_entries(self.file) if f"{entry.key}.".startswith(f"{key}." if key else "")]
        message = explain_entries(parser, entries, error)
        return ValueError(message if message.startswith(str(self.file)) else f"{self.file}: {message}")
