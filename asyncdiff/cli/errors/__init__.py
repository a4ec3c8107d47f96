"""Turn configuration errors into one-line messages with file, key and a suggestion."""

from asyncdiff.cli.errors.parser import ReportingParser, UsageError
from asyncdiff.cli.errors.user_errors import one_line_errors, user_error_message

__all__ = ["ReportingParser", "UsageError", "one_line_errors", "user_error_message"]
