"""A parser whose complaints can be put to the user in one line."""

from typing import NoReturn

from jsonargparse import ArgumentParser

from asyncdiff.cli.errors.parse_jsonargparse import UsageError


class ReportingParser(ArgumentParser):
    """A parser that raises what it has to say, for `explain` to condense, instead of printing its usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the message, with the keys that are known."""
        if not self.exit_on_error:  # a nested parser, whose caller may have another way to read the value
            super().error(message, ex)
        raise UsageError(message, dotted_keys(self)) from ex


def dotted_keys(parser: ArgumentParser) -> set[str]:
    """Every key that a file or a command line may hold, those of the subcommands without their name."""
    keys = set()
    for action in parser._actions:
        keys.add(action.dest)
        for below in (getattr(action, "_name_parser_map", None) or {}).values():
            keys |= dotted_keys(below)
    return keys
