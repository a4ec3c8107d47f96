"""Choice of the columns of images and labels, for storages that name them, and one-line errors of their libraries."""

from collections.abc import Iterable


def choose_column(argument: str, name: str | None, candidates: Iterable[str], place: str, remedy: str) -> str:
    """Return `name` if it is a candidate, or the only candidate if it is None; otherwise raise ValueError.

    The error names the `argument` of the data module that gives the name, and the `place` that has the columns.
    """
    columns = list(candidates)
    if name is None and len(columns) == 1:
        return columns[0]
    if name is None or name not in columns:
        got = f"{len(columns)} possible columns" if name is None else repr(name)
        raise ValueError(
            f"{argument} must be one of the columns of {place} ({', '.join(columns) or 'none'}), got {got}: {remedy}"
        )
    return name


def one_line(error: BaseException) -> str:
    """Return the message of an error without line breaks, or its type if there is none."""
    return " ".join(str(error).split()) or type(error).__name__
