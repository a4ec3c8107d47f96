"""List what the user wrote on a command line and in its YAML files, with the place of every value."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jsonargparse import ActionConfigFile
from jsonargparse._typehints import ActionTypeHint

from asyncdiff.checkpoints.moved_arguments import contradiction, update_key
from asyncdiff.checkpoints.old_names import update_names
from asyncdiff.regular_files import open_regular
from asyncdiff.yaml_files import MAX_SIZE, compose_yaml


class InvalidFileError(ValueError):
    """Raised for a file that cannot be read as YAML, and for an option without its value."""


class Entry(NamedTuple):
    """Key and value that the user wrote.

    Attributes:
        key: dotted key without list indices, as named by this version; empty for a positional argument and for the
            contents of a file.
        value: value as plain dicts, lists and scalars.
        place: FILE:LINE, or the option as typed.
        appends: whether the key ends in +, which appends to a list.
    """

    key: str
    value: Any
    place: str
    appends: bool = False


def command_line_entries(parser: argparse.ArgumentParser, argv: Sequence[str]) -> Iterator[Entry]:
    """Yield the entries of a command line, and those of its YAML files, in their order."""
    flags = [option for action in parser._actions if action.nargs == 0 for option in action.option_strings]
    typed_options = [
        option
        for action in parser._actions
        if isinstance(action, ActionTypeHint | ActionConfigFile) and action.nargs is None
        for option in action.option_strings
    ]
    rest = list(argv)
    while rest:
        typed, equals, value = (argument := rest.pop(0)).partition("=")
        if not typed.startswith("--"):
            yield Entry("", argument, "")
            continue
        if not equals:
            if typed in typed_options and (not rest or rest[0].startswith("--")):
                raise InvalidFileError(f"{typed}: a value must follow")
            value = "true" if typed in flags or not rest or rest[0].startswith("--") else rest.pop(0)
        key = "" if typed == "--config" else typed[2:].rstrip("+").removesuffix(".help")
        if not key or (value.endswith((".yaml", ".yml", ".json")) and Path(value).is_file()):
            yield from file_entries(Path(value), key)
        elif value.startswith(("{", "[")):
            yield from _entries(value, key, typed, lines=False)
        else:
            yield Entry(key, update_names(value), typed.rstrip("+"), typed.endswith("+"))


def file_entries(file: Path, key: str = "") -> Iterator[Entry]:
    """Yield the entries of a YAML file below a key; raise InvalidFileError with the line if it is not valid."""
    try:
        with open_regular(file, "--config") as stream:
            content = stream.read(MAX_SIZE + 1)
    except OSError as error:
        raise InvalidFileError(f"--config must be a YAML file, got {file}: {error.strerror}") from error
    except ValueError as error:
        raise InvalidFileError(str(error)) from error
    yield from _entries(content, key, str(file), lines=True)


def _entries(text: str | bytes, key: str, place: str, *, lines: bool) -> Iterator[Entry]:
    written: dict[str, tuple[str, Any]] = {}  # by current key, the key as written, and its value

    def walk(loader: Any, node: yaml.Node, typed: str, mark: Any) -> Iterator[Entry]:
        key = typed.rstrip("+")
        value = loader.construct_object(node, deep=True)
        value, where = update_names(value), f"{place}:{mark.line + 1}" if lines else place
        current = update_key(key)
        earlier, before = written.setdefault(current, (key, value))
        if earlier != key and before != value:
            old, old_value, value = (key, value, before) if key != current else (earlier, before, value)
            raise InvalidFileError(f"{where}: {contradiction(old, old_value, current, value)}")
        yield Entry(current, value, where, typed.endswith("+"))
        if isinstance(node, yaml.SequenceNode):
            for item in node.value:
                if not isinstance(item, yaml.ScalarNode):
                    yield from walk(loader, item, key, item.start_mark)
        elif isinstance(node, yaml.MappingNode):
            for name, item in sorted(node.value, key=lambda pair: pair[0].value != "class_path"):
                yield from walk(loader, item, f"{key}.{name.value}".strip("."), name.start_mark)

    try:
        loader, node = compose_yaml(text, place)
    except ValueError as error:
        raise InvalidFileError(str(error)) from error
    if node is None:
        yield Entry(key, "", f"{place}:1" if lines else place)
    else:
        yield from walk(loader, node, key, node.start_mark)
