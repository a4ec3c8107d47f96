"""Argument parser that raises its errors so that they can be condensed into one line."""

import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, get_loader, set_loader
from jsonargparse._loaders_dumpers import set_omegaconf_loader
from omegaconf.errors import OmegaConfBaseException

from asyncdiff.checkpoints.old_names import update_argv, update_config, warn_of_old_names

LOAD_YAML = get_loader("yaml")  # before a parser replaces it


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
            return super().parse_args(argv, *rest, **options)
        except (UnexplainedError, OmegaConfBaseException, UnicodeDecodeError) as error:
            from asyncdiff.cli.errors.diagnosis import explain  # imported late because it is rarely needed

            # Here and not by the caller, because the explanation may import only what the parser may.
            raise UsageError(explain(self, argv, error)) from error

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
    """YAML loader that replaces names of earlier versions."""

    def __init__(self, loader: Callable[..., Any]):
        self.loader = loader

    def __call__(self, stream: str) -> Any:
        content = LOAD_YAML(stream)
        updated = with_current_names(content)
        # The loader gets text: it makes interpolations relative, which must happen after keys have moved.
        return self.loader(stream if updated == content else yaml.safe_dump(updated, sort_keys=False))
