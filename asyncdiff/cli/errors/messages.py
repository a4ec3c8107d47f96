"""Explain parser errors to the user: one line with file, key, rule and remedy."""

import inspect
import re
import textwrap
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import yaml

from asyncdiff.cli.errors.parse_jsonargparse import COMMANDS, Report, UsageError, parse_report, without_command
from asyncdiff.cli.errors.suggestions import (
    did_you_mean,
    find_class,
    is_installed,
    known_classes,
    nearest_class_path,
    nearest_name,
)
from asyncdiff.cli.errors.yaml_locations import entries, locate, mentions_class, yaml_files
from asyncdiff.cli.trusted_packages import refusal_message

STRUCTURE = ("class_path", "init_args")
MAX_CHOICES = 8  # class paths listed in a message


@dataclass(frozen=True)
class ErrorMessage:
    """Error message, usually about a key.

    Attributes:
        key: dotted key, empty if the error concerns no key.
        text: what is wrong, and the remedy.
        value: invalid value, which helps to locate the key in a file; empty if the error is not about a value.
    """

    key: str
    text: str
    value: str = ""


def explain(error: UsageError, argv: Sequence[str]) -> str:
    """Explain a parser error in one line.

    Args:
        error: the parser's error.
        argv: the command line, whose YAML files are searched for the key.

    Returns:
        Location, key and message, without the prefix "error: ".
    """
    report = parse_report(error, argv)
    for pattern, rule in RULES:
        if match := re.search(pattern, report.reason):
            message = rule(report, match)
            break
    else:
        message = ErrorMessage(report.key, " ".join([report.reason, *report.rest]))
    where = locate(message.key, message.value, yaml_files(argv))
    return ": ".join(part for part in (where, message.key, " ".join(message.text.split())) if part)


def _unknown_key(report: Report, match: re.Match[str]) -> ErrorMessage:
    """Explain a key that the program does not know."""
    return _unknown_name(match["key"], report.keys, "key", "")


def _unknown_name(name: str, keys: Collection[str], noun: str, prefix: str) -> ErrorMessage:
    """Explain an unknown key or option, and suggest a similar one.

    Args:
        name: unknown dotted key.
        keys: known keys.
        noun: "key" or "option".
        prefix: prefix of suggested names, such as dashes.

    Returns:
        Message about the first unknown part of the key.
    """
    parts = name.split(".")
    depth, siblings = _first_unknown(parts, keys)
    above, wrong = parts[:depth], ".".join(parts[: depth + 1])
    if parts[depth] in STRUCTURE:
        return ErrorMessage(wrong, f"there is no such {noun}: write its arguments directly below {'.'.join(above)}")
    elsewhere = {key.rpartition(".")[2]: key for key in sorted(keys)}
    if close := nearest_name(parts[depth], siblings, 0.75):
        meant = ".".join([*above, close])
    else:
        meant = elsewhere.get(nearest_name(parts[-1], elsewhere, 0.75), "")
    return ErrorMessage(wrong, f"there is no such {noun}{did_you_mean(prefix + meant if meant else '')}")


def _first_unknown(parts: Sequence[str], keys: Collection[str]) -> tuple[int, set[str]]:
    """Return the index of the first part that is not a known key, and the known keys at that level."""
    split = [key.split(".") for key in keys]
    for depth, part in enumerate(parts):
        siblings = {key[depth] for key in split if len(key) > depth and key[:depth] == list(parts[:depth])}
        if part not in siblings:
            return depth, siblings
    return len(parts) - 1, set()


def _unrecognized(report: Report, match: re.Match[str]) -> ErrorMessage:
    """Explain an argument of the command line that is not an option."""
    argument = match["argument"]
    if not argument.startswith("--"):
        return ErrorMessage("", f"{argument} is not an option: options begin with --, and a value follows its option")
    message = _unknown_name(re.split("[=+]", argument[2:])[0], report.keys, "option", "--")
    return ErrorMessage(f"--{message.key}", message.text)


def _unknown_argument(report: Report, match: re.Match[str]) -> ErrorMessage:
    """Explain a key in init_args that is not an argument of the class."""
    argument, kind = match["key"].split(".")[0], find_class(report.class_path)
    accepted = [] if kind is None else [n for n in inspect.signature(kind).parameters if n not in ("args", "kwargs")]
    if argument not in accepted and (close := nearest_name(argument, STRUCTURE, 0.8)):
        return ErrorMessage(f"{report.key}.{argument}", "there is no such key" + did_you_mean(close))
    if not mentions_class(report.class_path, report.argv) and (kind is None or kind not in known_classes().values()):
        return ErrorMessage(report.key, "class_path must be given next to init_args")  # the parser used the base class
    choice = did_you_mean(nearest_name(argument, accepted)) or f"; it takes {', '.join(accepted) or 'no arguments'}"
    name = report.class_path.rpartition(".")[2]
    return ErrorMessage(f"{report.key}.init_args.{argument}", f"{name} has no argument {argument}{choice}")


def _unknown_class(report: Report, match: re.Match[str]) -> ErrorMessage:
    """Explain a class that cannot be imported."""
    path, missing = match.groupdict().get("path") or report.class_path, match.groupdict().get("missing")
    if missing and not path.startswith(missing):  # the module exists, but imports a missing package
        return ErrorMessage(report.key, f"{path} needs the package {missing}, which is not installed", path)
    return ErrorMessage(report.key, f"there is no class {path}{did_you_mean(nearest_class_path(path))}", path)


def _not_allowed(report: Report, match: re.Match[str]) -> ErrorMessage:
    """Explain a class whose module may not be imported."""
    path = match["path"]
    candidates = (report.class_path, _given_value(report))
    given = next((value for value in candidates if mentions_class(value, report.argv)), path)
    mentioned = mentions_class(path, report.argv) or any(path in argument for argument in report.argv)
    if path == given and not mentioned:  # the parser fell back to the base class
        return _without_class(report)
    if not is_installed(path):
        return _unknown_class(replace(report, class_path=path), match)
    return ErrorMessage(report.key, refusal_message(path), given)


def _without_class(report: Report) -> ErrorMessage:
    """Explain init_args without a class_path."""
    for line in [report.reason, *report.rest]:
        for key in re.findall(r"[{,(] ?'?(\w+)'?[:=]", line):
            if key not in STRUCTURE and (close := nearest_name(key, STRUCTURE, 0.8)):
                return ErrorMessage(f"{report.key}.{key}", "there is no such key" + did_you_mean(close))
    return ErrorMessage(report.key, "class_path must be given next to init_args")


def _no_path(report: Report, match: re.Match[str]) -> ErrorMessage:
    """Explain a value that is not a class path, such as the name of a missing file."""
    path = match["path"]
    reason = "there is no such file" if path.endswith((".yaml", ".yml", ".json")) else "it is neither"
    return ErrorMessage(report.key, f"must be a class path or a YAML file with one, got {path}: {reason}", path)


def _wrong_kind(report: Report, match: re.Match[str]) -> ErrorMessage:
    """Explain a class that is abstract or of the wrong type for the key."""
    path, kind = match["path"], match.groupdict().get("kind")
    base = kind or path.rpartition(".")[2]
    fitting = [
        known
        for known, candidate in known_classes().items()
        if not inspect.isabstract(candidate) and base in (parent.__name__ for parent in candidate.__mro__[1:])
    ]
    choices = ", ".join(fitting[:MAX_CHOICES]) + (", ..." if len(fitting) > MAX_CHOICES else "")
    problem = f"is not a {kind}" if kind else "is abstract"
    return ErrorMessage(report.key, f"{path} {problem}; choose from {choices}", path)


def _no_class(report: Report, match: re.Match[str]) -> ErrorMessage:
    """Explain a value that does not describe an object where one is expected."""
    given = match["value"] or _given_value(report)
    for key in re.findall(r"[{,] ?'(\w+)':", given):
        if key not in STRUCTURE and (close := nearest_name(key, STRUCTURE, 0.7)):
            return ErrorMessage(f"{report.key}.{key}", "there is no such key" + did_you_mean(close))
    form = "{class_path: ..., init_args: {...}}"
    return ErrorMessage(report.key, f"must be a {match['kind']} written as {form}, got {_shorten(given)}")


def _wrong_type(report: Report, match: re.Match[str]) -> ErrorMessage:
    """Explain a value of the wrong type."""
    others = [other["kind"] for line in report.alternatives if (other := re.match(TYPE, line))]
    kinds = dict.fromkeys(_type_name(kind) for kind in (match["kind"], *others))
    return ErrorMessage(
        report.key, f"must be {' or '.join(kinds)}, got {_shorten(match['value'] or _given_value(report))}"
    )


def _type_name(kind: str) -> str:
    kind = re.sub(r"<class '(?:.*\.)?(\w+)'>", r"\1", kind).replace("NoneType", "null")
    return re.sub(r"^typing\.Literal\[(.+)\]$", r"one of \1", kind)


def _missing(report: Report, match: re.Match[str]) -> ErrorMessage:
    """Explain missing arguments that have no default."""
    keys = [without_command(key) for key in match["keys"].split(", ")]
    keys = [f"{report.key}.init_args.{key}" if report.class_path else key for key in keys]
    remedy = "; name an experiment file with --config"
    if "config" not in report.keys or yaml_files(report.argv):
        remedy = ""
    return ErrorMessage("", f"{', '.join(keys)} must be given{remedy}")


def _unknown_interpolation(report: Report, match: re.Match[str]) -> ErrorMessage:
    """Explain an interpolation that refers to a missing key, or that cannot be resolved."""
    key = next((line.partition(": ")[2] for line in report.rest if line.startswith("full_key: ")), "")
    key, reason = without_command(key), match["reason"]
    target = re.search(r"Interpolation key '(?P<written>.+?)' not found(?: \(resolved to '(?P<path>.+)'\))?", reason)
    if target is None:
        return ErrorMessage(key, re.sub(r"^\w+ raised while resolving interpolation: ", "", reason).strip('"'))
    missing = without_command(target["path"] or target["written"])
    known = {entry for file in yaml_files(report.argv) for entry, _, _ in entries(file)} | set(report.keys)
    return ErrorMessage(
        key, f"${{{missing}}} is not defined{did_you_mean(nearest_name(missing, known - {missing, key}))}"
    )


def _wrong_command(report: Report, match: re.Match[str]) -> ErrorMessage:
    """Explain a missing or unknown subcommand."""
    given = match.groupdict().get("command")
    text = f"the command must be one of {', '.join(COMMANDS)}"
    return ErrorMessage("", f"{text}, got {given}{did_you_mean(nearest_name(given, COMMANDS))}" if given else text)


def _before_command(report: Report, match: re.Match[str]) -> ErrorMessage:
    return ErrorMessage("", f"options must come after the command, as in: train.py {match['command']} --config FILE")


def _no_sections(report: Report, match: re.Match[str]) -> ErrorMessage:
    """Explain a YAML file without keys."""
    files = ", ".join(str(file) for file in yaml_files(report.argv)) or "the configuration"
    return ErrorMessage(
        "", f"{files} must contain sections such as data, model and trainer, got {_shorten(match['given'])}"
    )


def _bad_file(report: Report, match: re.Match[str]) -> ErrorMessage:
    """Explain a file that is not valid YAML."""
    for file in yaml_files(report.argv):
        try:
            yaml.compose(file.read_bytes(), yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            return ErrorMessage("", f"{file}:{line}: not valid YAML: {error.problem}")
        except yaml.reader.ReaderError as error:
            return ErrorMessage(
                "", f"{file}: not valid YAML: {error.reason} at byte {error.position}; save it as UTF-8"
            )
    return ErrorMessage("", " ".join([report.reason, *report.rest]))


TYPE = r"^Expected a (?:value of type )?(?P<kind>.+?)(?:\. Got value: (?P<value>.*))?$"
RULES: tuple[tuple[str, Callable[[Report, re.Match[str]], ErrorMessage]], ...] = (
    (r"does not accept option '(?P<key>[^']+)'", _unknown_key),
    (r"[Uu]nrecognized arguments: (?P<argument>\S+)", _unrecognized),
    (r"Option '[^']+' is not accepted before subcommand '?(?P<command>\w+)", _before_command),
    (r"Option '(?P<key>[^']+)' is not accepted", _unknown_argument),
    (r"Unexpected import path format: (?P<path>\S+)", _no_path),
    (r"Importing '(?P<path>[^']+)' is not allowed", _not_allowed),
    (r"module '[\w.]+' has no attribute", _unknown_class),
    (r"No module named '(?P<missing>[\w.]+)'", _unknown_class),
    (r"Expected a dot import path string: (?P<path>.+)", _unknown_class),
    (r"Import path (?P<path>\S+) does not correspond to a subclass of (?P<kind>\w+)", _wrong_kind),
    (r"Expected an instantiatable class, but (?P<path>\S+) is abstract", _wrong_kind),
    (r"Not a valid subclass of (?P<kind>\w+)(?:\. Got value: (?P<value>.*))?", _no_class),
    (r"arguments are required: (?P<keys>.+)", _missing),
    (r"^interpolation: (?P<reason>.+)", _unknown_interpolation),
    (r"invalid choice: '(?P<command>\w+)'", _wrong_command),
    (r'expected "subcommand"', _wrong_command),
    (r"Problems parsing config", _bad_file),
    (r"^Unexpected config:\s*(?P<given>.*)", _no_sections),
    (TYPE, _wrong_type),
)


def _given_value(report: Report) -> str:
    """Return the invalid value if the report states it after the reasons, else an empty string."""
    return next((line.removeprefix("Given value: ") for line in report.rest if line.startswith("Given value: ")), "")


def _shorten(value: str) -> str:
    return textwrap.shorten(value or "nothing", 80, placeholder=" ...")
