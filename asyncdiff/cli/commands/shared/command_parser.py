"""Parse the options of a command, and refuse wrong ones before PyTorch is imported.

Options whose values are objects, such as --sampler, are declared by the path of their class. They are left out of a
first pass, which finds misspelled options, missing and invalid values; a second pass imports the classes and builds the
objects, and is needed only if there are any.
"""

import builtins
import inspect
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module  # noqa: TID251  of the classes that commands declare
from typing import Any

from jsonargparse import Namespace

from asyncdiff.cli.errors import ReportingParser


class CommandParser(ReportingParser):
    """Parser of a command.

    Attributes:
        imports_classes: whether the classes of objects are imported; otherwise the values of these options are not
            checked, and the command line must be free of them.
        objects: options whose values are objects, such as --sampler.
    """

    imports_classes = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.objects: list[str] = []

    def add_object(self, option: str, class_path: str, *, help: str, by_name: bool = False) -> None:
        """Add an option whose value is None or an object, written as a class path, as JSON or as a YAML file.

        Args:
            option: name of the option, such as --sampler.
            class_path: path of the object's base class.
            help: description of the option.
            by_name: whether the value is a dictionary of objects by name.
        """
        self.objects.append(option)
        kind: Any = Any
        if self.imports_classes:
            module, _, name = class_path.rpartition(".")
            kind = getattr(import_module(module), name)
            kind = (dict[str, kind] if by_name else kind) | None
        self.add_argument(option, type=kind, sub_configs=self.imports_classes, default=None, help=help)

    def add_constructor(self, kind: type) -> None:
        """Add the constructor arguments of a class as options, with the help from its docstring."""
        if self.imports_classes:
            self.add_class_arguments(kind)
            return
        hints = typing.get_type_hints(kind.__init__, localns=_Names(kind))  # type: ignore[misc]
        for name, parameter in inspect.signature(kind).parameters.items():
            if is_object := _contains_class(hints[name]):
                self.objects.append(f"--{name}")
            given = {"required": True} if parameter.default is parameter.empty else {"default": parameter.default}
            self.add_argument(f"--{name}", type=Any if is_object else hints[name], **given)


def command_parser(command: str, description: str, *, imports_classes: bool = True) -> CommandParser:
    """Return a parser without arguments for `python -m asyncdiff COMMAND`, which raises its errors."""
    # allow_abbrev=False: a prefix of an option is a typing error and must not count as the option.
    # OmegaConf allows interpolation in files, as in train.py.
    parser = CommandParser(
        prog=f"python -m asyncdiff {command}", description=description, allow_abbrev=False, parser_mode="omegaconf+"
    )
    parser.imports_classes = imports_classes
    return parser


@dataclass(frozen=True)
class CommandLine:
    """Command line of a command: its plain options, and all of them once these are known to be valid.

    Attributes:
        command: name of the command.
        description: introduction of its help text.
        declare: function that adds the arguments of the command to a parser.
        argv: arguments after the command name.
    """

    command: str
    description: str
    declare: Callable[[CommandParser], None]
    argv: Sequence[str]

    @cached_property
    def plain(self) -> Namespace:
        """Values of the options; those of objects are None or their defaults, and not checked."""
        if self._first.objects and any(map(_asks_for_help, self.argv)):
            self._parser(imports_classes=True).parse_args(list(self.argv))  # ends with the help, which names classes
        return self._first.parse_args(self._plain_argv)

    @property
    def has_objects(self) -> bool:
        """Whether an option has an object as its value, for which `plain` has none."""
        return self._plain_argv != list(self.argv)

    def build(self) -> Namespace:
        """Return the values of all options, with the objects built; without any, PyTorch is not imported."""
        plain = self.plain
        if not self.has_objects:
            return plain
        parser = self._parser(imports_classes=True)
        options: Namespace = parser.instantiate(parser.parse_args(list(self.argv)))
        return options

    @cached_property
    def _first(self) -> CommandParser:
        return self._parser(imports_classes=False)

    @cached_property
    def _plain_argv(self) -> list[str]:
        """Arguments without the objects."""
        rest = list(self.argv)
        for option in self._first.objects:
            rest, _ = split_option(rest, option)
        return rest

    def _parser(self, *, imports_classes: bool) -> CommandParser:
        parser = command_parser(self.command, self.description, imports_classes=imports_classes)
        self.declare(parser)
        return parser


def parse_options(
    command: str, description: str, declare: Callable[[CommandParser], None], argv: Sequence[str]
) -> Namespace:
    """Return the values of all options of a command line, with the objects built; see `CommandLine`."""
    return CommandLine(command, description, declare, argv).build()


def underscore_option(argument: str) -> str:
    """Replace dashes in an option name with underscores, so that both spellings work."""
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value if argument.startswith("--") else argument


def split_option(argv: Iterable[str], option: str) -> tuple[list[str], list[str]]:
    """Split argv into all other arguments, and an option and those nested below it with their values."""
    rest: list[str] = []
    taken: list[str] = []
    takes_value = False
    for argument in argv:
        name, equals, _ = argument.partition("=")
        matches = name == option or name.startswith(f"{option}.")
        (taken if matches or (takes_value and not name.startswith("--")) else rest).append(argument)
        takes_value = matches and not equals
    return rest, taken


def _asks_for_help(argument: str) -> bool:
    name = argument.partition("=")[0]
    return name in ("-h", "--help") or (name.startswith("--") and name.endswith(".help"))


class _NotImported:
    """Stand-in for a class that a module imports for type checkers only."""


class _Names(dict[str, Any]):
    """Names in annotations: `_NotImported` for those that are neither built in nor in the class's module."""

    def __init__(self, kind: type):
        super().__init__()
        self.known = {**vars(builtins), **vars(inspect.getmodule(kind) or builtins)}

    def __missing__(self, name: str) -> Any:
        return self.known.get(name, _NotImported)


def _contains_class(hint: Any) -> bool:
    """Return whether a type is a class whose values are objects, or a union with one."""
    if typing.get_origin(hint) is typing.Literal:
        return False
    parts = typing.get_args(hint) or (hint,)
    return any(isinstance(part, type) and part.__module__ != "builtins" for part in parts)
