"""How all commands read their words. Whatever is wrong with them is raised; the dispatcher puts it into one line."""

import re

from asyncdiff.cli_errors import ReportingParser


def command_parser(command: str, description: str) -> ReportingParser:
    """An empty parser for `python -m asyncdiff COMMAND`; arguments are added as to any of jsonargparse."""
    # Half an option is a typing error: it must not count as the option that begins with it.
    return ReportingParser(prog=f"python -m asyncdiff {command}", description=description, allow_abbrev=False)


def rows_by_columns(name: str, text: str) -> tuple[int, int]:
    """The two numbers of a word such as 16x16; ValueError with the option's `name`."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or "0" in match.groups():
        raise ValueError(f"{name} must be ROWSxCOLUMNS, got {text}: 16x16, say")
    return int(match[1]), int(match[2])
