"""Parse error reports of jsonargparse: trees of up to sixty lines, one branch per attempt to read a value."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

COMMANDS = ("fit", "validate", "test", "predict")
# Lines that only give a report its structure.
STRUCTURAL_LINES = r"Does not validate against any|Subtypes: |Errors:|Expected a path but .* not accessible"


class UsageError(Exception):
    """Parser error about a command line or a file.

    Args:
        report: the parser's report, of one or many lines.
        keys: dotted keys known to the parser.
    """

    def __init__(self, report: str, keys: Collection[str]):
        super().__init__(report)
        self.report = report
        self.keys = keys


@dataclass(frozen=True)
class Report:
    """Parsed error report, on the assumption that the parser's first attempt is what the user meant.

    Attributes:
        key: dotted key of the invalid value, as far as the report names it.
        class_path: class whose arguments are invalid, or empty.
        reason: reason of the first failure, as the parser words it.
        alternatives: reasons why the other types allowed for the value failed.
        rest: all lines after the reason.
        keys: every known dotted key outside init_args.
        argv: the command line.
    """

    key: str
    class_path: str
    reason: str
    alternatives: Sequence[str]
    rest: Sequence[str]
    keys: Collection[str]
    argv: Sequence[str]


def parse_report(error: UsageError, argv: Sequence[str]) -> Report:
    """Parse the first failure in an error report; `argv` is the command line."""
    key, class_path, reason, line = "", "", "", ""
    rest = [text for text in error.report.splitlines() if text.strip()]
    while rest and not reason:
        line = rest.pop(0)
        reason = _strip_bullet(line)
        if match := re.match(r'Parser key "(.+?)":\s*(.*)', reason):
            key, reason = (f"{key}.init_args.{match[1]}" if class_path else match[1]), match[2]
        elif match := re.match(r"Problem with given class_path '(.+)':", reason):
            class_path, reason = match[1], ""
        elif re.match(STRUCTURAL_LINES, reason):
            reason = ""
    bullet = re.match(r"\s*- ", line)
    return Report(
        key=without_command(key),
        class_path=class_path,
        reason=reason,
        alternatives=[_strip_bullet(text) for text in rest if bullet and text.startswith(bullet[0])],
        rest=[_strip_bullet(text) for text in rest],
        keys=error.keys,
        argv=argv,
    )


def without_command(key: str) -> str:
    """Return a dotted key without the subcommand, as it appears in files."""
    return re.sub(rf"^({'|'.join(COMMANDS)})\.", "", key)


def _strip_bullet(line: str) -> str:
    return line.strip().removeprefix("- ")
