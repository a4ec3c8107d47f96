"""Argument parser that raises its errors so that they can be condensed into one line."""

import os
import stat
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, get_loader, set_loader
from jsonargparse._loaders_dumpers import set_omegaconf_loader
from omegaconf.errors import OmegaConfBaseException

from asyncdiff.checkpoints.old_names import update_argv, update_config, warn_of_old_names
from asyncdiff.cli.errors.interpolations import check_interpolations
from asyncdiff.cli.errors.null_values import null_keys
from asyncdiff.regular_files import check_regular
from asyncdiff.yaml_files import parse_yaml, read_yaml

LOAD_YAML = get_loader("yaml")  # before a parser replaces it
NULLS = ("null", "Null", "NULL", "~")
MAX_PATH = 4096  # characters of a path


class UsageError(Exception):
    """Error in a command line or a file, in one line."""


class UnexplainedError(UsageError):
    """Error with jsonargparse's own message, of one or many lines."""


class ReportingParser(ArgumentParser):
    """Parser that raises UsageError (condensed by `explain`) instead of printing its usage.

    Names of earlier versions, in files and on the command line, are replaced by current ones, with a warning.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        set_omegaconf_loader(self.parser_mode)  # jsonargparse itself sets the loader only when it reads the first file
        loader = get_loader(self.parser_mode)
        if not isinstance(loader, _CurrentNamesLoader):
            set_loader(self.parser_mode, _CurrentNamesLoader(loader), (yaml.YAMLError,))

    def parse_args(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:  # type: ignore[override]
        """Parse a command line, which may contain names of earlier versions."""
        argv = with_current_names(list(sys.argv[1:] if args is None else args), update_argv)
        try:
            _check_files(argv)
        except ValueError as error:
            raise UsageError(str(error)) from error
        try:
            values = super().parse_args(argv, *rest, **options)
            if key := next(null_keys(self._actions, values), None):
                raise UnexplainedError(f"{key} must not be null: omit it, or give a value")
            return values
        except (UnexplainedError, OmegaConfBaseException, UnicodeDecodeError) as error:
            from asyncdiff.cli.errors.diagnosis import explain  # imported late because it is rarely needed

            # Here and not by the caller, because the explanation may import only what the parser may.
            raise UsageError(explain(self, argv, error)) from error

    def _parse_common(self, cfg: Any, *rest: Any, **options: Any) -> Any:
        """Bound the interpolations before they are resolved."""
        check_interpolations(cfg)
        return super()._parse_common(cfg, *rest, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise UnexplainedError with the message."""
        if not self.exit_on_error:  # a nested parser: its caller may try to read the value in another way
            super().error(message, ex)
        raise UnexplainedError(message) from ex


def with_current_names(value: Any, update: Callable[..., Any] = update_config) -> Any:
    """Return a copy of a file's contents or a command line with current names, and print one warning about old ones."""
    replaced: dict[str, str] = {}
    try:
        updated = update(value, replaced)
    except ValueError as error:  # explained with the line of the file
        raise UnexplainedError(str(error)) from error
    warn_of_old_names(replaced)
    return updated


class _CurrentNamesLoader:
    """YAML loader that refuses what `parse_yaml` refuses, and replaces names of earlier versions."""

    def __init__(self, loader: Callable[..., Any]):
        self.loader = loader

    def __call__(self, stream: str) -> Any:
        try:
            content = parse_yaml(stream)
            _refuse_pipes(content)
        except ValueError as error:
            if isinstance(error.__cause__, yaml.YAMLError):
                raise error.__cause__ from error  # not YAML: the parser may take it for a plain string
            raise UnexplainedError(str(error)) from error  # explained with the line of the file
        if content is None and stream.strip() not in NULLS:
            raise yaml.YAMLError("there are only comments")  # an empty file would pass for null
        content = LOAD_YAML(stream)
        updated = with_current_names(content)
        # The loader gets text: it makes interpolations relative, which must happen after keys have moved.
        return self.loader(stream if updated == content else yaml.safe_dump(updated, sort_keys=False))


def _check_files(argv: Sequence[str]) -> None:
    """Raise ValueError for a pipe, and for a file after --config that is not valid YAML.

    The parser itself would wait for a pipe forever, and read a file of any size.
    """
    for argument, following in pairwise(["", *argv]):
        name, equals, value = following.partition("=") if following.startswith("--") else (argument, "=", following)
        _refuse_pipes(value if equals else "", name if name.startswith("--") else "an argument")
        if name == "--config" and equals:
            with suppress(OSError):  # explained by the parser
                read_yaml(Path(value), name=name)


def _refuse_pipes(value: Any, name: str = "a value") -> None:
    """Raise ValueError for every string in a configuration that names a pipe."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _refuse_pipes(item, name)
    elif isinstance(value, str) and len(value) <= MAX_PATH and stat.S_ISFIFO(_mode(value)):
        check_regular(value, name)


def _mode(path: str) -> int:
    try:
        return os.stat(path).st_mode
    except (OSError, ValueError):
        return 0
