"""One line for the user out of what goes wrong: where, which key, what is wrong with it, the nearest right name."""

from asyncdiff.cli_errors.refusals import users_error
from asyncdiff.cli_errors.reports import UsageError
from asyncdiff.cli_errors.rules import explain

__all__ = ["UsageError", "explain", "users_error"]
