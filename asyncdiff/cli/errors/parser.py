"""A parser whose complaints can be put to the user in one line."""

import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, get_loader, set_loader
from jsonargparse._loaders_dumpers import set_omegaconf_loader

from asyncdiff.checkpoints.old_names import current
from asyncdiff.cli.errors.parse_jsonargparse import UsageError


class ReportingParser(ArgumentParser):
    """A parser that raises what it has to say, for `explain` to condense, instead of printing its usage.

    Class paths of earlier versions, in files and on the command line, are read as their present ones, with a warning.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        set_omegaconf_loader(self.parser_mode)  # otherwise there is none before the first file
        loader = get_loader(self.parser_mode)
        if not isinstance(loader, _CurrentNames):
            set_loader(self.parser_mode, _CurrentNames(loader), (yaml.YAMLError,))

    def parse_args(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:  # type: ignore[override]
        """Parse the words of a command line, of which some may be class paths of earlier versions."""
        return super().parse_args(None if args is None else upgraded(list(args)), *rest, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the message, with the keys that are known."""
        if not self.exit_on_error:  # a nested parser, whose caller may have another way to read the value
            super().error(message, ex)
        raise UsageError(message, dotted_keys(self)) from ex


def dotted_keys(parser: ArgumentParser) -> set[str]:
    """Every key that a file or a command line may hold, those of the subcommands without their name."""
    keys = set()
    for action in parser._actions:
        keys.add(action.dest)
        for below in (getattr(action, "_name_parser_map", None) or {}).values():
            keys |= dotted_keys(below)
    return keys


def upgraded(value: Any) -> Any:
    """Return what a file or a command line holds under present names; one warning line tells of old class paths."""
    found: dict[str, str] = {}
    held = current(value, found)
    if found:
        warn_once("; ".join(f"{old} is now {new}" for old, new in found.items()))
    return held


@cache
def warn_once(told: str) -> None:
    """Print a warning about old names; a file may be loaded several times."""
    print(f"warning: names of an earlier version: {told}", file=sys.stderr)


class _CurrentNames:
    """A YAML loader that brings class paths of earlier versions up to date."""

    def __init__(self, loader: Callable[..., Any]):
        self.loader = loader

    def __call__(self, stream: str) -> Any:
        return upgraded(self.loader(stream))
