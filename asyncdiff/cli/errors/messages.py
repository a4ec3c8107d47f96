"""What the parser reports, and how it is put to the user: one line with the place, the key and a remedy."""

import inspect
import re
import textwrap
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import yaml

from asyncdiff.cli.errors.parse_jsonargparse import COMMANDS, Report, UsageError, take_apart, without_command
from asyncdiff.cli.errors.suggestions import did_you_mean, find_class, installed, known_classes, near, near_class
from asyncdiff.cli.errors.yaml_locations import entries, files_of, locate, names_class
from asyncdiff.cli.trusted_packages import refusal

STRUCTURE = ("class_path", "init_args")
LISTED = 8  # names in a list of choices


@dataclass(frozen=True)
class Complaint:
    """What to tell; `value` is what stands at the key, if that is what is wrong."""

    key: str
    text: str
    value: str = ""


def explain(error: UsageError, words: Sequence[str]) -> str:
    """The report as one line; `words` is the command line, which names the files to look in."""
    report = take_apart(error, words)
    for pattern, rule in RULES:
        if match := re.search(pattern, report.reason):
            complaint = rule(report, match)
            break
    else:
        complaint = Complaint(report.key, " ".join([report.reason, *report.rest]))
    where = locate(complaint.key, complaint.value, files_of(words))
    return ": ".join(part for part in (where, complaint.key, " ".join(complaint.text.split())) if part)


def _unknown_key(report: Report, match: re.Match[str]) -> Complaint:
    """A key that no argument of the program has."""
    parts = match["key"].split(".")
    depth, siblings = _first_unknown(parts, report.keys)
    above, wrong = parts[:depth], ".".join(parts[: depth + 1])
    if parts[depth] in STRUCTURE:
        return Complaint(wrong, f"there is no such key; its arguments stand directly below {'.'.join(above)}")
    elsewhere = {key.rpartition(".")[2]: key for key in sorted(report.keys)}
    if close := near(parts[depth], siblings, 0.75):
        meant = ".".join([*above, close])
    else:
        meant = elsewhere.get(near(parts[-1], elsewhere, 0.75), "")
    return Complaint(wrong, "there is no such key" + did_you_mean(meant))


def _first_unknown(parts: Sequence[str], keys: Collection[str]) -> tuple[int, set[str]]:
    """Index of the first part that leads to no key, and the parts that would have led to one."""
    split = [key.split(".") for key in keys]
    for depth, part in enumerate(parts):
        siblings = {key[depth] for key in split if len(key) > depth and key[:depth] == list(parts[:depth])}
        if part not in siblings:
            return depth, siblings
    return len(parts) - 1, set()


def _unrecognized(report: Report, match: re.Match[str]) -> Complaint:
    """A word of the command line that is no option."""
    word = match["word"]
    if not word.startswith("--"):
        return Complaint("", f"{word} is no option: options begin with --, and a value follows its option")
    complaint = _unknown_key(report, re.match(r"--(?P<key>[^=+]+)", word) or match)
    return Complaint(f"--{complaint.key}", complaint.text.replace("mean ", "mean --").replace("key", "option"))


def _unknown_argument(report: Report, match: re.Match[str]) -> Complaint:
    """A key in init_args that the class does not take."""
    argument, kind = match["key"].split(".")[0], find_class(report.class_path)
    taken = [] if kind is None else [n for n in inspect.signature(kind).parameters if n not in ("args", "kwargs")]
    if argument not in taken and (close := near(argument, STRUCTURE, 0.8)):
        return Complaint(f"{report.key}.{argument}", "there is no such key" + did_you_mean(close))
    if not names_class(report.class_path, report.words) and (kind is None or kind not in known_classes().values()):
        return Complaint(report.key, "class_path must be given next to init_args")  # the parser fell back to the base
    choice = did_you_mean(near(argument, taken)) or f"; it takes {', '.join(taken) or 'no arguments'}"
    name = report.class_path.rpartition(".")[2]
    return Complaint(f"{report.key}.init_args.{argument}", f"{name} has no argument {argument}{choice}")


def _unknown_class(report: Report, match: re.Match[str]) -> Complaint:
    """A class that cannot be imported."""
    path, missing = match.groupdict().get("path") or report.class_path, match.groupdict().get("missing")
    if missing and not path.startswith(missing):  # its module exists, and needs something that is not installed
        return Complaint(report.key, f"{path} needs the package {missing}, which is not installed", path)
    return Complaint(report.key, f"there is no class {path}{did_you_mean(near_class(path))}", path)


def _not_allowed(report: Report, match: re.Match[str]) -> Complaint:
    """A class whose module may not be imported."""
    path = match["path"]
    given = next((value for value in (report.class_path, _given(report)) if names_class(value, report.words)), path)
    said = names_class(path, report.words) or any(path in word for word in report.words)
    if path == given and not said:  # the parser fell back to the base
        return _without_class(report)
    if not installed(path):
        return _unknown_class(replace(report, class_path=path), match)
    return Complaint(report.key, refusal(path), given)


def _without_class(report: Report) -> Complaint:
    """Arguments without the class that takes them."""
    for line in [report.reason, *report.rest]:
        for key in re.findall(r"[{,(] ?'?(\w+)'?[:=]", line):
            if key not in STRUCTURE and (close := near(key, STRUCTURE, 0.8)):
                return Complaint(f"{report.key}.{key}", "there is no such key" + did_you_mean(close))
    return Complaint(report.key, "class_path must be given next to init_args")


def _no_path(report: Report, match: re.Match[str]) -> Complaint:
    """A word that is no class path, such as the name of a file that is not there."""
    path = match["path"]
    known = "there is no such file" if path.endswith((".yaml", ".yml", ".json")) else "it is no dotted path either"
    return Complaint(report.key, f"must be a class or a file of one, got {path}: {known}", path)


def _wrong_kind(report: Report, match: re.Match[str]) -> Complaint:
    """A class that exists, but not of the kind that the key asks for."""
    path, kind = match["path"], match.groupdict().get("kind")
    base = kind or path.rpartition(".")[2]
    fitting = [
        known
        for known, found in known_classes().items()
        if not inspect.isabstract(found) and base in (parent.__name__ for parent in found.__mro__[1:])
    ]
    choices = ", ".join(fitting[:LISTED]) + (", ..." if len(fitting) > LISTED else "")
    return Complaint(report.key, f"{path} is {f'no {kind}' if kind else 'abstract'}; choose from {choices}", path)


def _no_class(report: Report, match: re.Match[str]) -> Complaint:
    """Something that describes no object where one is expected."""
    given = match["value"] or _given(report)
    for key in re.findall(r"[{,] ?'(\w+)':", given):
        if key not in STRUCTURE and (close := near(key, STRUCTURE, 0.7)):
            return Complaint(f"{report.key}.{key}", "there is no such key" + did_you_mean(close))
    form = "{class_path: ..., init_args: {...}}"
    return Complaint(report.key, f"must be a {match['kind']} as {form}, got {_short(given)}")


def _wrong_type(report: Report, match: re.Match[str]) -> Complaint:
    """A value that its argument cannot take."""
    also = [found["kind"] for line in report.alternatives if (found := re.match(TYPE, line))]
    kinds = dict.fromkeys(_type_name(kind) for kind in (match["kind"], *also))
    return Complaint(report.key, f"must be {' or '.join(kinds)}, got {_short(match['value'] or _given(report))}")


def _type_name(kind: str) -> str:
    kind = re.sub(r"<class '(?:.*\.)?(\w+)'>", r"\1", kind).replace("NoneType", "null")
    return re.sub(r"^typing\.Literal\[(.+)\]$", r"one of \1", kind)


def _missing(report: Report, match: re.Match[str]) -> Complaint:
    """Arguments that have no default."""
    keys = [without_command(key) for key in match["keys"].split(", ")]
    keys = [f"{report.key}.init_args.{key}" if report.class_path else key for key in keys]
    remedy = "; name an experiment file with --config"
    if "config" not in report.keys or files_of(report.words):
        remedy = ""
    return Complaint("", f"{', '.join(keys)} must be given{remedy}")


def _unknown_interpolation(report: Report, match: re.Match[str]) -> Complaint:
    """An interpolation that leads nowhere, or cannot be read."""
    key = next((line.partition(": ")[2] for line in report.rest if line.startswith("full_key: ")), "")
    key, reason = without_command(key), match["reason"]
    target = re.search(r"Interpolation key '(?P<written>.+?)' not found(?: \(resolved to '(?P<path>.+)'\))?", reason)
    if target is None:
        return Complaint(key, re.sub(r"^\w+ raised while resolving interpolation: ", "", reason).strip('"'))
    wanted = without_command(target["path"] or target["written"])
    known = {entry for file in files_of(report.words) for entry, _, _ in entries(file)} | set(report.keys)
    return Complaint(key, f"${{{wanted}}} leads to no value{did_you_mean(near(wanted, known - {wanted, key}))}")


def _wrong_command(report: Report, match: re.Match[str]) -> Complaint:
    """No command, or one that does not exist."""
    given = match.groupdict().get("command")
    text = f"the command must be one of {', '.join(COMMANDS)}"
    return Complaint("", f"{text}, got {given}{did_you_mean(near(given, COMMANDS))}" if given else text)


def _before_command(report: Report, match: re.Match[str]) -> Complaint:
    return Complaint("", f"options must come after the command, as in: train.py {match['command']} --config FILE")


def _no_sections(report: Report, match: re.Match[str]) -> Complaint:
    """A file that is YAML, but holds no keys."""
    named = ", ".join(str(file) for file in files_of(report.words)) or "the configuration"
    return Complaint("", f"{named} must hold sections such as data, model and trainer, got {_short(match['given'])}")


def _bad_file(report: Report, match: re.Match[str]) -> Complaint:
    """A file that is no YAML."""
    for file in files_of(report.words):
        try:
            yaml.compose(file.read_bytes(), yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            return Complaint("", f"{file}:{line}: not valid YAML: {error.problem}")
        except yaml.reader.ReaderError as error:
            return Complaint("", f"{file}: not valid YAML: {error.reason} at byte {error.position}; save it as UTF-8")
    return Complaint("", " ".join([report.reason, *report.rest]))


TYPE = r"^Expected a (?:value of type )?(?P<kind>.+?)(?:\. Got value: (?P<value>.*))?$"
RULES: tuple[tuple[str, Callable[[Report, re.Match[str]], Complaint]], ...] = (
    (r"does not accept option '(?P<key>[^']+)'", _unknown_key),
    (r"[Uu]nrecognized arguments: (?P<word>\S+)", _unrecognized),
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


def _given(report: Report) -> str:
    """The value at fault, where a report states it after the reasons."""
    return next((line.removeprefix("Given value: ") for line in report.rest if line.startswith("Given value: ")), "")


def _short(value: str) -> str:
    return textwrap.shorten(value or "nothing", 80, placeholder=" ...")
