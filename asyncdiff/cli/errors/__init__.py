"""One line for the user out of what goes wrong: where, which key, what is wrong with it, the nearest right name."""

from asyncdiff.cli.errors.exit_codes import one_line_errors
from asyncdiff.cli.errors.messages import explain
from asyncdiff.cli.errors.parse_jsonargparse import UsageError
from asyncdiff.cli.errors.parser import ReportingParser
from asyncdiff.cli.errors.user_errors import users_error

__all__ = ["ReportingParser", "UsageError", "explain", "one_line_errors", "users_error"]
