"""Turn configuration errors into one-line messages with file, key and a suggestion."""

from asyncdiff.cli.errors.exit_codes import one_line_errors
from asyncdiff.cli.errors.messages import explain
from asyncdiff.cli.errors.parse_jsonargparse import UsageError
from asyncdiff.cli.errors.parser import ReportingParser
from asyncdiff.cli.errors.user_errors import user_error_message

__all__ = ["ReportingParser", "UsageError", "explain", "one_line_errors", "user_error_message"]
