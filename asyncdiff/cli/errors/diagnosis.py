"""Explain in one line why a parser refuses a command line or a file: place, key, rule, value and remedy.

The wording of jsonargparse's messages is not used: what the user wrote is compared with the parser's options and with
the signatures of the classes that it names, and a value is tested by parsing it alone.
"""

import inspect
import re
import textwrap
import types
import typing
from argparse import _SubParsersAction
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from jsonargparse import ArgumentParser
from jsonargparse._typehints import ActionTypeHint
from omegaconf.errors import OmegaConfBaseException

from asyncdiff.cli.errors.entries import Entry, InvalidFileError, command_line_entries
from asyncdiff.cli.errors.suggestions import did_you_mean, known_classes, load_class, nearest_name

STRUCTURE = ("class_path", "init_args", "dict_kwargs")
MAX_CHOICES = 8  # class paths listed in a message


def explain(parser: ArgumentParser, argv: Sequence[str], error: Exception) -> str:
    """Return why a parser refuses a command line; jsonargparse's own message if no reason is found."""
    commands = next((action.choices for action in parser._actions if isinstance(action, _SubParsersAction)), None)
    given = argv[0] if argv else ""
    if commands is not None and given.startswith("-"):
        command = next((argument for argument in argv if argument in commands), "fit")
        return f"options must come after the command, as in: train.py {command} --config FILE"
    if commands is not None and given not in commands:
        rule = f"the command must be one of {', '.join(commands)}"
        return f"{rule}, got {given}{did_you_mean(nearest_name(given, commands))}" if given else rule
    if commands is not None:
        parser, argv = commands[given], argv[1:]
    try:
        return explain_entries(parser, list(command_line_entries(parser, argv)), error)
    except InvalidFileError as invalid:
        return str(invalid)


def explain_entries(parser: ArgumentParser, entries: Sequence[Entry], error: Exception) -> str:
    """Return why a parser refuses the entries, as `explain` does."""
    search = Search(parser)
    problem = next(search.problems(entries), str(error))
    if isinstance(error, OmegaConfBaseException):
        problem = next(_interpolation_problems(error, entries, search.kinds), problem)
    return " ".join(problem.split())


class Search:
    """Search for what a parser refuses.

    Args:
        parser: parser of a command, or of single keys.

    Attributes:
        kinds: type of every known dotted key, None for a key without type; arguments of a class are added below
            init_args when an entry names the class.
    """

    def __init__(self, parser: ArgumentParser):
        self.parser = parser
        self.kinds: dict[str, Any] = {action.dest: getattr(action, "_typehint", None) for action in parser._actions}
        self.classes: dict[str, type] = {}
        self.required = [action.dest for action in parser._actions if action.required and action.option_strings]
        self.required += sorted(getattr(parser, "_extra_required_keys", ()))
        self.positionals = [action.dest for action in parser._actions if not action.option_strings]

    def problems(self, entries: Sequence[Entry]) -> Iterator[str]:
        """Yield the problems in their order, then missing arguments."""
        for key, value, place in entries:
            if key:
                for problem in self._of_entry(self._full_key(key, place), value, place):
                    yield f"{place}: {problem}"
            elif not place and not self.positionals:
                yield f"{value} is not an option: options begin with --, and a value follows its option"
            elif place and not isinstance(value, dict):
                given = f"{place.rpartition(':')[0]} must contain sections such as data, model and trainer"
                yield f"{given}, got {_shorten(value)}"
        entered = {self._full_key(key, place) for key, value, place in entries if value != {}}
        missing = [key for key in dict.fromkeys(self.required) if key in self.kinds.keys() - entered]
        missing += [] if any(not entry.place for entry in entries) else self.positionals
        if missing:
            remedy = "; name an experiment file with --config" if "config" in self.kinds and not entries else ""
            yield f"{', '.join(missing)} must be given{remedy}"

    def _full_key(self, key: str, place: str) -> str:
        """Insert init_args where an option leaves it out, as in --sampler.steps."""
        for owner in self.classes if place.startswith("-") else ():
            rest = key.removeprefix(f"{owner}.")
            if rest != key and rest.partition(".")[0] not in STRUCTURE:
                return f"{owner}.init_args.{rest}"
        return key

    def _of_entry(self, key: str, value: Any, place: str) -> Iterator[str]:
        above, _, name = key.rpartition(".")
        label = "" if place.startswith("-") else f"{key}: "
        parent = self.kinds.get(above)
        for option in _alternatives(parent):
            if key not in self.kinds and typing.get_origin(option) is dict:
                self.kinds[key] = typing.get_args(option)[1]
        if name == "class_path" and _bases(parent):
            yield from self._of_class(above, value, "" if place.startswith("-") else f"{above}: ")
        elif _bases(parent):
            if name not in STRUCTURE and (close := nearest_name(name, STRUCTURE, 0.7)):
                yield f"{label}there is no such key{did_you_mean(close)}"
            elif above not in self.classes:
                yield f"{above}: class_path must be given next to init_args"
        elif key in self.kinds:
            yield from self._of_value(key, value, label)
        elif not any(known.startswith(f"{key}.") for known in self.kinds) and not self._is_free(above):
            yield label + self._unknown(key, place)
        elif value is not None and not isinstance(value, dict):
            yield f"{label}must be a section of keys, got {_shorten(value)}"

    def _is_free(self, key: str) -> bool:
        """Return whether a key lies in a value whose keys are not checked, such as a dictionary."""
        while key and self.kinds.get(key) is None:
            key = key.rpartition(".")[0]
        return bool(key) and not _bases(self.kinds[key])

    def _of_class(self, key: str, path: Any, label: str) -> Iterator[str]:
        """Yield what is wrong with the class named at a key, or add its arguments to the known keys."""
        bases = _bases(self.kinds[key])
        kind, problem = load_class(str(path), bases)
        if kind is None:
            yield label + problem
            return
        if not issubclass(kind, bases) or inspect.isabstract(kind):
            known = [p for p, c in known_classes().items() if issubclass(c, bases) and not inspect.isabstract(c)]
            choices = ", ".join(known[:MAX_CHOICES]) + (", ..." if len(known) > MAX_CHOICES else "")
            kinds = " or ".join(base.__name__ for base in bases)
            problem = "is abstract" if issubclass(kind, bases) else f"is not a {kinds}"
            yield f"{label}{path} {problem}; choose from {choices}"
            return
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(kind, fail_untyped=False)
        self.classes[key] = kind
        self.kinds = {known: t for known, t in self.kinds.items() if not known.startswith(f"{key}.init_args.")}
        for action in parser._actions:
            if action.dest != "help":
                self.kinds[f"{key}.init_args.{action.dest}"] = getattr(action, "_typehint", None)
                self.required += [f"{key}.init_args.{action.dest}"] if action.required else []

    def _of_value(self, key: str, value: Any, label: str) -> Iterator[str]:
        kind = self.kinds[key]
        bases, options = _bases(kind), _alternatives(kind)
        has_objects = bases or any(_bases(item) for option in options for item in typing.get_args(option))
        if kind is None or "${" in str(value) or (has_objects and isinstance(value, dict | list)):
            return  # the entries below are checked instead
        if bases and isinstance(value, str):
            yield from () if str in options else self._of_class(key, value, label)
        elif not self._accepts(kind, value):
            yield f"{label}must be {' or '.join(dict.fromkeys(map(_type_name, options)))}, got {_shorten(value)}"

    def _accepts(self, kind: Any, value: Any) -> bool:
        """Return whether jsonargparse accepts a value for a type."""
        parser = ArgumentParser(exit_on_error=False, parser_mode=self.parser.parser_mode)
        parser.add_argument("--value", type=kind)
        try:
            parser.parse_object({"value": value})
        except Exception:  # whatever the type's own code raises
            return False
        return True

    def _unknown(self, key: str, place: str) -> str:
        """Explain an unknown key, and suggest a similar one."""
        above, _, name = key.rpartition(".")
        owner = self.classes.get(above.removesuffix(".init_args")) if above.endswith(".init_args") else None
        prefix = f"{above}." if above else ""
        siblings = {k.removeprefix(prefix).partition(".")[0] for k in self.kinds if k.startswith(prefix)}
        if owner is not None:
            accepted = ", ".join(sorted(siblings)) or "no arguments"
            choice = did_you_mean(nearest_name(name, siblings)) or f"; it takes {accepted}"
            return f"{owner.__name__} has no argument {name}{choice}"
        dashes, noun = ("--", "option") if place.startswith("-") else ("", "key")
        if name in STRUCTURE:
            return f"there is no such {noun}: write its arguments directly below {above}"
        elsewhere = {known.rpartition(".")[2]: known for known in sorted(self.kinds)}
        close = nearest_name(name, siblings, 0.75)
        meant = prefix + close if close else elsewhere.get(nearest_name(name, elsewhere, 0.75), "")
        return f"there is no such {noun}{did_you_mean(dashes + meant if meant else '')}"


def _interpolation_problems(
    error: OmegaConfBaseException, entries: Sequence[Entry], known: Iterable[str]
) -> Iterator[str]:
    """Explain an interpolation that refers to a missing key, or that cannot be resolved."""
    full_key = re.sub(r"\[\d+\]", "", str(getattr(error, "full_key", None) or ""))
    keys = {*known, *(entry.key for entry in entries)}
    # Inside train.py, the key begins with the subcommand.
    for key, value, place in [entry for entry in entries if entry.key and full_key.endswith(entry.key)][::-1]:
        for name in re.findall(r"\$\{(\w[\w.]*)\}", str(value)):
            if name not in keys:
                yield f"{place}: {key}: ${{{name}}} is not defined{did_you_mean(nearest_name(name, keys - {key}))}"
        yield f"{place}: {key}: {str(error).splitlines()[0]}"


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """Return the members of a union; any other type alone."""
    is_union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return tuple(part for option in typing.get_args(kind) for part in _alternatives(option)) if is_union else (kind,)


def _bases(kind: Any) -> tuple[type, ...]:
    """Return the classes in a type, also those of list items, whose values are written as class_path and init_args."""
    parts = [*_alternatives(kind)]
    parts += [item for option in parts if typing.get_origin(option) is not dict for item in typing.get_args(option)[:1]]
    return tuple(part for part in parts if isinstance(part, type) and ActionTypeHint.is_subclass_typehint(part))


def _type_name(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return f"one of {', '.join(map(repr, typing.get_args(kind)))}"
    return "null" if kind is type(None) else getattr(kind, "__name__", str(kind).replace("typing.", ""))


def _shorten(value: Any) -> str:
    return textwrap.shorten(str(value) or "nothing", 80, placeholder=" ...")
