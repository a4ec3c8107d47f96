"""One line for the user out of what goes wrong: where, which key, what is wrong with it, the nearest right name.

jsonargparse reports a wrong key as a tree of everything that it tried, over up to sixty lines. `explain` condenses such
a report; `users_error` tells mistakes of the user's, which our code refuses on purpose, from bugs.
"""

import difflib
import importlib
import inspect
import pkgutil
import re
import textwrap
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import yaml
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import asyncdiff
import datamodules

OURS = (asyncdiff, datamodules)
LIGHTNINGS = ("lightning.pytorch.callbacks", "lightning.pytorch.loggers")
HOMES = tuple(Path(path) for package in OURS for path in package.__path__)
STRUCTURE = ("class_path", "init_args")


class UsageError(Exception):
    """A report of the parser's on a command line or a file, and the dotted keys that it would have understood."""

    def __init__(self, report: str, keys: Collection[str]):
        super().__init__(report)
        self.report = report
        self.keys = keys


@dataclass(frozen=True)
class Place:
    """Where in the configuration a report complains: a dotted key, and the class whose arguments are meant, if any."""

    key: str
    class_path: str
    keys: Collection[str]  # all keys outside of class arguments
    words: Sequence[str]  # the command line


@dataclass(frozen=True)
class Complaint:
    """What is wrong at a key; `value` is what stands there, if that is what is wrong."""

    key: str
    text: str
    value: str = ""


def explain(error: UsageError, words: Sequence[str]) -> str:
    """The report as one line; `words` is the command line, which names the files to look in."""
    place, reason, rest = _condense(error, words)
    for pattern, rule in RULES:
        if match := re.search(pattern, reason):
            complaint = rule(place, match, rest)
            break
    else:
        complaint = Complaint(place.key, " ".join([reason, *rest]))
    where = _locate(complaint, _files(words))
    return ": ".join(part for part in (where, complaint.key, _flat(complaint.text)) if part)


def users_error(error: BaseException) -> str | None:
    """The one line of an error that our own code raised on purpose; None for a bug, whose traceback is needed."""
    if isinstance(error, MisconfigurationException):  # Lightning's word for an impossible combination of settings
        return _flat(str(error))
    if not isinstance(error, (ValueError, OSError)):
        return None
    worker = re.search(r"Original Traceback.*\n\w+: (?P<message>.*)", str(error), re.DOTALL)
    if worker:  # raised in a process that loads data: torch passes on the traceback as text
        frames = re.findall(r'File "(.+?)", line \d+, in .*\n\s+(.*)', str(error))
        return _flat(worker["message"]) if frames and _on_purpose(*frames[-1]) else None
    last = traceback.extract_tb(error.__traceback__)[-1]
    return _flat(str(error)) if _on_purpose(last.filename, last.line or "") else None


def _on_purpose(filename: str, line: str) -> bool:
    """Whether a `raise` of ours, rather than a function that we called, ended it."""
    return line.startswith("raise ") and any(Path(filename).is_relative_to(home) for home in HOMES)


# Reading a report


def _condense(error: UsageError, words: Sequence[str]) -> tuple[Place, str, list[str]]:
    """Place and first reason of a report, and the lines after it: the first thing that was tried is what was meant."""
    key, class_path = "", ""
    lines = [line.strip().removeprefix("- ") for line in error.report.splitlines() if line.strip()]
    for number, line in enumerate(lines):
        reason = line
        if match := re.match(r'Parser key "(.+?)":\s*(.*)', line):
            key, reason = (f"{key}.init_args.{match[1]}" if class_path else match[1]), match[2]
        elif match := re.match(r"Problem with given class_path '(.+)':", line):
            class_path, reason = match[1], ""
        elif re.match(r"Does not validate against any|Subtypes: |Errors:|Expected a path but .* not accessible", line):
            reason = ""
        if reason:
            break
    place = Place(_without_subcommand(key), class_path, error.keys, words)
    return place, reason, lines[number + 1 :]


def _without_subcommand(key: str) -> str:
    return re.sub(r"^(fit|validate|test|predict)\.", "", key)


def _flat(text: str) -> str:
    return " ".join(text.split())


# What reports say, and how it is put to the user


def _unknown_key(place: Place, match: re.Match[str], rest: list[str]) -> Complaint:
    """A key that no argument of the program has, in a file or on the command line."""
    parts = match["key"].lstrip("-").split("=")[0].rstrip("+").split(".")
    for depth, part in enumerate(parts):
        above = parts[:depth]
        siblings = {k.split(".")[depth] for k in place.keys if k.count(".") >= depth and k.split(".")[:depth] == above}
        if part not in siblings:
            break
    close = _near(part, siblings)
    elsewhere = {k.rpartition(".")[2]: k for k in sorted(place.keys)}
    found = elsewhere.get(parts[-1]) or (".".join([*above, close]) if close else "")
    found = found or elsewhere.get(_near(parts[-1], elsewhere), "")
    return Complaint(".".join([*above, part]), "there is no such key" + _did_you_mean(found))


def _unknown_argument(place: Place, match: re.Match[str], rest: list[str]) -> Complaint:
    """A key in init_args that the class does not take."""
    argument = match["key"].split(".")[0]
    taken = [] if _find(place.class_path) is None else [*inspect.signature(_find(place.class_path)).parameters]  # type: ignore[arg-type]
    taken = [name for name in taken if name not in ("self", "args", "kwargs")]
    if argument not in taken and (structural := _near(argument, STRUCTURE, 0.8)):
        return Complaint(f"{place.key}.{argument}", f"there is no such key{_did_you_mean(structural)}")
    close = _did_you_mean(_near(argument, taken)) or f"; it takes {', '.join(taken) or 'no arguments'}"
    name = place.class_path.rpartition(".")[2]
    return Complaint(f"{place.key}.init_args.{argument}", f"{name} has no argument {argument}{close}")


def _unknown_class(place: Place, match: re.Match[str], rest: list[str]) -> Complaint:
    """A class that cannot be imported."""
    path = match.groupdict().get("path") or place.class_path
    return Complaint(place.key, f"there is no class {path}{_did_you_mean(_near_class(path))}", path)


def _wrong_kind(place: Place, match: re.Match[str], rest: list[str]) -> Complaint:
    """A class that exists, but not of the kind that the key asks for."""
    kind = match.groupdict().get("kind") or match["path"].rpartition(".")[2]
    fitting = [
        path
        for path, found in _known_classes().items()
        if not inspect.isabstract(found) and kind in (base.__name__ for base in found.__mro__[1:])
    ]
    reason = f"is no {kind}" if match.groupdict().get("kind") else "is abstract"
    return Complaint(place.key, f"{match['path']} {reason}; choose from {', '.join(fitting)}", match["path"])


def _no_class(place: Place, match: re.Match[str], rest: list[str]) -> Complaint:
    """A mapping without class_path where an object is expected."""
    for key in re.findall(r"[{,] ?'(\w+)':", match["value"]):
        if key not in STRUCTURE and (close := _near(key, STRUCTURE, 0.7)):
            return Complaint(f"{place.key}.{key}", f"there is no such key{_did_you_mean(close)}")
    example = "{class_path: ..., init_args: {...}}"
    return Complaint(place.key, f"must describe a {match['kind']} as {example}, got {_short(match['value'])}")


def _wrong_type(place: Place, match: re.Match[str], rest: list[str]) -> Complaint:
    """A value that an argument of the program or of a class cannot take."""
    kinds, given = [match["kind"]], match["value"]
    for line in rest:
        if line.startswith("Given value: "):
            given = given or line.removeprefix("Given value: ")
            break
        if also := re.match(TYPE, line):
            kinds.append(also["kind"])
    named = [re.sub(r"<class '(?:.*\.)?(\w+)'>", r"\1", kind).replace("NoneType", "null") for kind in kinds]
    return Complaint(place.key, f"must be {' or '.join(dict.fromkeys(named))}, got {_short(given or 'nothing')}")


def _missing(place: Place, match: re.Match[str], rest: list[str]) -> Complaint:
    """Arguments that have no default."""
    keys = [_without_subcommand(key) for key in match["keys"].split(", ")]
    keys = [f"{place.key}.init_args.{key}" if place.class_path else key for key in keys]
    remedy = "" if _files(place.words) else "; name an experiment file with --config"
    return Complaint("", f"{', '.join(keys)} must be given{remedy}")


def _unknown_interpolation(place: Place, match: re.Match[str], rest: list[str]) -> Complaint:
    """An interpolation that leads nowhere, or cannot be read."""
    key = next((line.partition(": ")[2] for line in rest if line.startswith("full_key: ")), "")
    target = re.search(r"Interpolation key .* not found(?: \(resolved to '(.+)'\))?", match["reason"])
    if target is None:
        return Complaint(_without_subcommand(key), match["reason"])
    wanted = _without_subcommand(target[1] or re.findall(r"'(.+?)'", match["reason"])[0])
    known = {entry for file in _files(place.words) for entry, _, _ in _entries(file)} | set(place.keys)
    close = _did_you_mean(_near(wanted, known - {wanted, key}))
    return Complaint(_without_subcommand(key), f"${{{wanted}}} leads to no value{close}")


def _misplaced(place: Place, match: re.Match[str], rest: list[str]) -> Complaint:
    return Complaint(match["key"], f"must come after the command, as in: train.py {match['command']} --config FILE")


def _bad_file(place: Place, match: re.Match[str], rest: list[str]) -> Complaint:
    """A file that is no YAML."""
    for file in _files(place.words):
        try:
            yaml.compose(file.read_text(), yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            return Complaint("", f"{file}:{line}: not valid YAML: {error.problem}")
    return Complaint("", " ".join([match.string, *rest]))


TYPE = r"Expected a (?:value of type )?(?P<kind>.+?)(?:\. Got value: (?P<value>.*))?$"
RULES: tuple[tuple[str, Callable[[Place, re.Match[str], list[str]], Complaint]], ...] = (
    (r"does not accept option '(?P<key>[^']+)'", _unknown_key),
    (r"[Uu]nrecognized arguments: (?P<key>\S+)", _unknown_key),
    (r"Option '(?P<key>[^']+)' is not accepted before subcommand '?(?P<command>\w+)", _misplaced),
    (r"Option '(?P<key>[^']+)' is not accepted", _unknown_argument),
    (r"module '[\w.]+' has no attribute|No module named", _unknown_class),
    (r"Expected a dot import path string: (?P<path>.+)", _unknown_class),
    (r"Import path (?P<path>\S+) does not correspond to a subclass of (?P<kind>\w+)", _wrong_kind),
    (r"Expected an instantiatable class, but (?P<path>\S+) is abstract", _wrong_kind),
    (r"Not a valid subclass of (?P<kind>\w+)\. Got value: (?P<value>.*)", _no_class),
    (r"arguments are required: (?P<keys>.+)", _missing),
    (r"^interpolation: (?P<reason>.+)", _unknown_interpolation),
    (r"Problems parsing config", _bad_file),
    (TYPE, _wrong_type),
)


# Nearest names


def _near(name: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """The name most like another, whatever its capitals; empty if none is."""
    spelt = {known.lower(): known for known in names}
    return next((spelt[match] for match in difflib.get_close_matches(name.lower(), spelt, 1, cutoff)), "")


def _did_you_mean(name: str) -> str:
    return f"; did you mean {name}?" if name else ""


def _short(value: str) -> str:
    return textwrap.shorten(value, 80, placeholder=" ...")


def _find(class_path: str) -> type | None:
    """The class of a dotted path, if there is one."""
    module, _, name = class_path.rpartition(".")
    with suppress(ImportError, ValueError):
        found = getattr(importlib.import_module(module), name, None)
        return found if isinstance(found, type) else None
    return None


def _near_class(path: str) -> str:
    """The dotted path of the class most like the one meant: one of the same module first, then any that we know."""
    module, _, name = path.rpartition(".")
    known = _known_classes()
    siblings = {entry.rpartition(".")[2]: entry for entry in known if entry.rpartition(".")[0] == module}
    everywhere = {entry.rpartition(".")[2]: entry for entry in known}
    same = [entry for entry in known if entry.endswith(f".{name}")]
    return _near(path, same, 0.0) or siblings.get(_near(name, siblings)) or everywhere.get(_near(name, everywhere), "")


def _known_classes() -> dict[str, type]:
    """Every class that an experiment may name, by the shortest path to it."""
    known: dict[type, str] = {}
    for name in _modules():
        with suppress(ImportError):
            module = importlib.import_module(name)
            for key, value in vars(module).items():
                public = key in getattr(module, "__all__", ()) or getattr(value, "__module__", "") == name
                if isinstance(value, type) and public and not key.startswith("_"):
                    known[value] = min(f"{name}.{key}", known.get(value, f"{name}.{key}"), key=len)
    return {path: kind for kind, path in known.items()}


def _modules() -> Iterator[str]:
    yield from LIGHTNINGS
    for package in OURS:
        yield package.__name__
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.", onerror=lambda name: None):
            yield module.name


# Places in the user's files


def _files(words: Sequence[str]) -> list[Path]:
    """The YAML files that a command line names."""
    named = [Path(word.rpartition("=")[2]) for word in words]
    return [path for path in named if path.suffix in (".yaml", ".yml", ".json") and path.is_file()]


def _locate(complaint: Complaint, files: Sequence[Path]) -> str:
    """FILE:LINE of a key, in the last file that has it, as that is the one that counts; empty if none has."""
    keys = [complaint.key, f"{complaint.key}.class_path"] if complaint.value else [complaint.key]
    for file in reversed(files):
        for key, value, line in _entries(file):
            if key in keys and complaint.value in ("", value):
                return f"{file}:{line}"
    return ""


def _entries(file: Path) -> list[tuple[str, str, int]]:
    """Every key of a file, dotted and without the indices of lists, with its scalar value and its line."""
    with suppress(yaml.YAMLError):
        return list(_walk(yaml.compose(file.read_text(), yaml.SafeLoader), ""))
    return []


def _walk(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, str, int]]:
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _walk(item, prefix)
    elif isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            key = f"{prefix}.{name.value}".lstrip(".").rstrip("+")
            yield key, str(value.value) if isinstance(value, yaml.ScalarNode) else "", name.start_mark.line + 1
            yield from _walk(value, key)
