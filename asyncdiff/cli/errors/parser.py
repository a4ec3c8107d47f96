"""Argument parser that raises its errors so that they can be condensed into one line."""

import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, get_loader, set_loader
from jsonargparse._loaders_dumpers import set_omegaconf_loader
from omegaconf.errors import OmegaConfBaseException

from asyncdiff.checkpoints.old_names import update_names


class UsageError(Exception):
    """Error in a command line or a file, in one line."""


class UnexplainedError(UsageError):
    """Error with jsonargparse's own message, of one or many lines."""


class ReportingParser(ArgumentParser):
    """Parser that raises UsageError (condensed by `explain`) instead of printing its usage.

    Class paths of earlier versions, in files and on the command line, are replaced by current ones, with a warning.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        set_omegaconf_loader(self.parser_mode)  # jsonargparse itself sets the loader only when it reads the first file
        loader = get_loader(self.parser_mode)
        if not isinstance(loader, _CurrentNamesLoader):
            set_loader(self.parser_mode, _CurrentNamesLoader(loader), (yaml.YAMLError,))

    def parse_args(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:  # type: ignore[override]
        """Parse a command line, which may contain class paths of earlier versions."""
        argv = list(sys.argv[1:] if args is None else args)
        try:
            return super().parse_args(with_current_names(argv), *rest, **options)
        except (UnexplainedError, OmegaConfBaseException, UnicodeDecodeError) as error:
            from asyncdiff.cli.errors.diagnosis import explain  # imported late because it is rarely needed

            # Here and not by the caller, because the explanation may import only what the parser may.
            raise UsageError(explain(self, argv, error)) from error

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise UnexplainedError with the message."""
        if not self.exit_on_error:  # a nested parser: its caller may try to read the value in another way
            super().error(message, ex)
        raise UnexplainedError(message) from ex


def with_current_names(value: Any) -> Any:
    """Replace outdated class paths in the contents of a file or command line, with one warning that lists them."""
    replaced: dict[str, str] = {}
    updated = update_names(value, replaced)
    if replaced:
        warn_once("; ".join(f"{old} is now {new}" for old, new in replaced.items()))
    return updated


@cache
def warn_once(renames: str) -> None:
    """Print a warning about outdated names, once even if the file is loaded several times."""
    print(f"warning: names of an earlier version: {renames}", file=sys.stderr)


class _CurrentNamesLoader:
    """YAML loader that replaces class paths of earlier versions."""

    def __init__(self, loader: Callable[..., Any]):
        self.loader = loader

    def __call__(self, stream: str) -> Any:
        return with_current_names(self.loader(stream))
