"""jsonargparse's reports taken apart: trees, over up to sixty lines, of all that was tried to read a value."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

COMMANDS = ("fit", "validate", "test", "predict")
# Lines of a report that only hold it together.
SCAFFOLD = r"Does not validate against any|Subtypes: |Errors:|Expected a path but .* not accessible"


class UsageError(Exception):
    """What the parser reports on a command line or a file, and the dotted keys that it would have understood."""

    def __init__(self, report: str, keys: Collection[str]):
        super().__init__(report)
        self.report = report
        self.keys = keys


@dataclass(frozen=True)
class Report:
    """A report taken apart: the first thing that the parser tried is what the user meant.

    Attributes:
        key: dotted key of the value at fault, as far as the report tells.
        class_path: the class whose arguments are at fault, or empty.
        reason: what is wrong, in the words of the parser.
        alternatives: what is wrong when the value is read in other ways that its type allows.
        rest: all lines after the reason.
        keys: every dotted key that is known outside of init_args.
        words: the command line.
    """

    key: str
    class_path: str
    reason: str
    alternatives: Sequence[str]
    rest: Sequence[str]
    keys: Collection[str]
    words: Sequence[str]


def take_apart(error: UsageError, words: Sequence[str]) -> Report:
    """What a report says of the first thing tried; `words` is the command line."""
    key, class_path, reason, line = "", "", "", ""
    rest = [text for text in error.report.splitlines() if text.strip()]
    while rest and not reason:
        line = rest.pop(0)
        reason = _bare(line)
        if match := re.match(r'Parser key "(.+?)":\s*(.*)', reason):
            key, reason = (f"{key}.init_args.{match[1]}" if class_path else match[1]), match[2]
        elif match := re.match(r"Problem with given class_path '(.+)':", reason):
            class_path, reason = match[1], ""
        elif re.match(SCAFFOLD, reason):
            reason = ""
    bullet = re.match(r"\s*- ", line)
    return Report(
        key=without_command(key),
        class_path=class_path,
        reason=reason,
        alternatives=[_bare(text) for text in rest if bullet and text.startswith(bullet[0])],
        rest=[_bare(text) for text in rest],
        keys=error.keys,
        words=words,
    )


def without_command(key: str) -> str:
    """A dotted key as it stands in a file, where the command is left out."""
    return re.sub(rf"^({'|'.join(COMMANDS)})\.", "", key)


def _bare(line: str) -> str:
    return line.strip().removeprefix("- ")
