"""One line for the user out of what goes wrong: where, which key, what is wrong with it, the nearest right name."""

from asyncdiff.cli_errors.endings import one_line_errors
from asyncdiff.cli_errors.parser import ReportingParser
from asyncdiff.cli_errors.refusals import users_error
from asyncdiff.cli_errors.reports import UsageError
from asyncdiff.cli_errors.rules import explain

__all__ = ["ReportingParser", "UsageError", "explain", "one_line_errors", "users_error"]
