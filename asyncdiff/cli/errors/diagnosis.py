"""Explain in one line why a parser refuses a command line or a file: place, key, rule, value and remedy.

The wording of jsonargparse's messages is not used: what the user wrote is compared with the parser's options and with
the signatures of the classes that it names, and a value is tested by parsing it alone.
"""

import inspect
import math
import re
import textwrap
import typing
from argparse import _SubParsersAction
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from jsonargparse import ArgumentParser
from jsonargparse._typehints import ActionTypeHint
from omegaconf.errors import OmegaConfBaseException

from asyncdiff.checkpoints.moved_arguments import MOVED, update_key
from asyncdiff.cli.errors.entries import Entry, InvalidFileError, command_line_entries
from asyncdiff.cli.errors.null_values import alternatives, constructor_actions, is_nullable
from asyncdiff.cli.errors.suggestions import did_you_mean, known_classes, load_class, nearest_name

STRUCTURE = ("class_path", "init_args", "dict_kwargs")
ONLY_OPTIONS = ("help", "config", "print_config")
MAX_CHOICES = 8  # class paths listed in a message
NO_CLASS = ("null", "true", "false")  # values of options that YAML does not read as strings


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
        self.nullable = {action.dest for action in parser._actions if is_nullable(action)}
        self.required = [action.dest for action in parser._actions if action.required and action.option_strings]
        self.required += sorted(getattr(parser, "_extra_required_keys", ()))
        positionals = [action for action in parser._actions if not action.option_strings]
        self.positionals = [action.dest for action in positionals]
        self.max_positionals = math.inf if any(action.nargs for action in positionals) else len(positionals)
        self.values: dict[str, Any] = {}  # the last value of each key
        self.lists: dict[str, list[Any]] = {}  # the last list, whose items are entries of the same key

    def problems(self, entries: Sequence[Entry]) -> Iterator[str]:
        """Yield the problems in their order, then missing arguments."""
        entered: set[str] = set()
        positionals = 0
        for key, value, place, appends in entries:
            if key:
                full = self._full_key(key, place)
                if appends and full in self.kinds and not _is_list(self.kinds[full]):
                    label = "" if place.startswith("-") else f"{full}: "
                    yield f"{place}: {label}+ appends to a list, which this is not: write {key.rpartition('.')[2]}"
                entered = {k for k in entered if not k.startswith(f"{full}.")} if value is None else entered
                entered |= {full} if value != {} else set()
                for problem in self._of_entry(full, value, place):
                    yield f"{place}: {problem}"
                self.values[full] = value
                if isinstance(value, list):
                    self.lists[full] = value
            elif not place:
                positionals += 1
                if positionals > self.max_positionals:
                    yield f"{value} is not an option: options begin with --, and a value follows its option"
            elif not isinstance(value, dict):
                yield _without_sections(value, place)
        for key, value, place, _ in entries:
            if (meant := _follow(value, self.values)) is not value:
                for problem in self._of_entry(self._full_key(key, place), meant, place):
                    yield f"{place}: {problem}"
        missing = [key for key in dict.fromkeys(self.required) if key in self.kinds.keys() - entered]
        missing += [] if positionals else self.positionals
        if missing:
            no_file = "config" in self.kinds and all(entry.place.startswith("-") for entry in entries)
            yield f"{', '.join(missing)} must be given{'; name an experiment file with --config' if no_file else ''}"
        for key, value, place, _ in entries:
            if not key and isinstance(value, dict) and all(section is None for section in value.values()):
                yield _without_sections(value, place)

    def _full_key(self, key: str, place: str) -> str:
        """Insert init_args where an option leaves it out, as in --sampler.steps."""
        if not place.startswith("-"):
            return key
        option = place.lstrip("-").rstrip("+")
        below = key.removeprefix(option) if key.startswith(f"{option}.") else ""  # in JSON, nothing may be left out
        key = key.removesuffix(below)
        for owner in self.classes:
            rest = key.removeprefix(f"{owner}.")
            if rest != key and rest.partition(".")[0] not in STRUCTURE:
                key = f"{owner}.init_args.{rest}"
        return key + below

    def _of_entry(self, key: str, value: Any, place: str) -> Iterator[str]:
        above, _, name = key.rpartition(".")
        label = "" if place.startswith("-") else f"{key}: "
        parent = self.kinds.get(above)
        for option in alternatives(parent):
            if key not in self.kinds and typing.get_origin(option) is dict:
                self.kinds[key] = typing.get_args(option)[1]
        if name == "class_path" and _bases(parent):
            yield from self._of_class(above, value, "" if place.startswith("-") else f"{above}: ")
        elif _bases(parent):
            beside = self.values.get(above)
            if name not in STRUCTURE and (close := nearest_name(name, STRUCTURE, 0.7)):
                yield f"{label}there is no such key{did_you_mean(close)}"
            elif above not in self.classes:
                yield f"{above}: class_path must be given next to init_args"
            elif name not in STRUCTURE and isinstance(beside, dict) and "class_path" in beside:
                yield f"{label}there is no such key: write it below {above}.init_args"
            elif name not in STRUCTURE:  # the class is in an earlier file
                yield from self._of_entry(f"{above}.init_args.{name}", value, place)
        elif any(known.startswith(f"{key}.") for known in self.kinds) and self.kinds.get(key) is None:
            if value is not None and not isinstance(value, dict):
                yield f"{label}must be a section of keys, got {_shorten(value)}"
        elif key in self.kinds and (key not in ONLY_OPTIONS or place.startswith("-")):
            yield from self._of_value(key, value, label)
        elif not self._is_free(above):
            yield label + self._unknown(key, place)

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
        self.classes[key] = kind
        self.kinds = {known: t for known, t in self.kinds.items() if not known.startswith(f"{key}.init_args.")}
        for action in constructor_actions(self.classes[key]):
            name = f"{key}.init_args.{action.dest}"
            self.kinds[name] = getattr(action, "_typehint", None)
            self.required += [name] if action.required else []
            self.nullable |= {name} if is_nullable(action) else set()

    def _of_value(self, key: str, value: Any, label: str) -> Iterator[str]:
        kind = self.kinds[key]
        bases, options = _bases(kind), alternatives(kind)
        if kind is None or (isinstance(value, dict) and value in self.lists.get(key, ())):
            return
        if value is None:
            if key not in self.nullable:
                types_of_key = " or ".join(dict.fromkeys(map(_type_name, options)))
                yield f"{label}must be {types_of_key}, got null: omit it, or give a value"
            return
        if any(_may_contain_objects(option, value) for option in options):  # the entries below are checked, too
            items = [item for item in value if not isinstance(item, dict | list)] if isinstance(value, list) else ()
            for item in items:
                yield from self._of_value(key, item, label)
        elif bases and isinstance(value, str) and value not in NO_CLASS and "${" not in value:
            yield from () if str in options else self._of_class(key, value, label)
        elif "${" not in str(value) and not self._accepts(kind, value):
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
        known = [k for k in self.kinds if k not in ONLY_OPTIONS or place.startswith("-")]
        siblings = {k.removeprefix(prefix).partition(".")[0] for k in known if k.startswith(prefix)}
        if owner is not None:
            accepted = ", ".join(sorted(siblings)) or "no arguments"
            choice = did_you_mean(nearest_name(name, siblings)) or f"; it takes {accepted}"
            return f"{owner.__name__} has no argument {name}{choice}"
        dashes, noun = ("--", "option") if place.startswith("-") else ("", "key")
        if name in STRUCTURE:
            return f"there is no such {noun}: write its arguments directly below {above}"
        elsewhere = {k.rpartition(".")[2]: k for k in sorted(known)}
        elsewhere |= {old: new for old in MOVED if (new := update_key(f"model.{old}")) in known}
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
    for key, value, place, _ in [entry for entry in entries if entry.key and full_key.endswith(entry.key)][::-1]:
        where = place if place.startswith("-") else f"{place}: {key}"
        for name in re.findall(r"\$\{(\w[\w.]*)\}", str(value)):
            if name not in keys:
                yield f"{where}: ${{{name}}} is not defined{did_you_mean(nearest_name(name, keys - {key}))}"
        reason = re.sub(r"^\w+ raised while resolving interpolation: ", "", str(error).splitlines()[0])
        yield f"{where}: {reason.strip(chr(34))}"


def _without_sections(value: Any, place: str) -> str:
    file = place.rpartition(":")[0]
    return f"{file} must contain sections such as data, model and trainer, got {_shorten(value)}"


def _follow(value: Any, values: Mapping[str, Any]) -> Any:
    """Return the value that an interpolation refers to, and any other value unchanged."""
    for _ in values:  # which may be a circle
        reference = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
        if reference is None or reference[1] not in values:
            break
        value = values[reference[1]]
    return value


def _is_list(kind: Any) -> bool:
    return any(typing.get_origin(option) in (list, Sequence, Iterable) for option in alternatives(kind))


def _bases(kind: Any) -> tuple[type, ...]:
    """Return the classes in a type, also those of list items, whose values are written as class_path and init_args."""
    parts = [*alternatives(kind)]
    parts += [item for option in parts if typing.get_origin(option) is not dict for item in typing.get_args(option)[:1]]
    return tuple(part for part in parts if isinstance(part, type) and ActionTypeHint.is_subclass_typehint(part))


def _may_contain_objects(option: Any, value: Any) -> bool:
    """Return whether a value of this type may be a dict or a list like the given one, with objects."""
    origin, items = typing.get_origin(option), typing.get_args(option)
    if isinstance(value, dict):
        return bool(_bases(option) if origin is None else origin is dict and _bases(items[1]))
    return isinstance(value, list) and origin is not None and bool(_bases(option))


def _type_name(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return f"one of {', '.join(map(repr, typing.get_args(kind)))}"
    if kind is type(None):
        return "null"
    name = getattr(kind, "__name__", str(kind).replace("typing.", ""))
    if items := [item for item in typing.get_args(kind) if item is not ...]:
        return f"{name}[{', '.join(map(_type_name, items))}]" if not _bases(kind) else name
    return f"{name} written as {{class_path: ..., init_args: {{...}}}}" if _bases(kind) else name


def _shorten(value: Any) -> str:
    return textwrap.shorten("null" if value is None else str(value) or "nothing", 80, placeholder=" ...")
