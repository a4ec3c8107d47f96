"""Read JSON files of other programs or earlier runs; what is wrong with them is reported in one line."""

import json
from pathlib import Path
from typing import Any

from asyncdiff.regular_files import open_regular

MAX_SIZE = 2**26  # bytes; result cards and records of runs have kilobytes
MAX_DEPTH = 100  # containers in containers; what reads the contents calls itself for each


def read_json(file: Path, remedy: str) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        file: path of the file.
        remedy: end of the error messages: what to do if the file is damaged.

    Returns:
        Contents of the file.

    Raises:
        ValueError: the file cannot be read or does not contain a JSON object.
    """
    try:
        with open_regular(file, "a JSON file") as stream:
            text = stream.read(MAX_SIZE + 1)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise ValueError(f"{file} cannot be read as a JSON file: {reason}: {remedy}") from error
    return parse_json(text, str(file), remedy)


def parse_json(text: str | bytes, place: str, remedy: str) -> dict[str, Any]:
    """Parse a JSON object.

    Args:
        text: the object, of at most `MAX_SIZE` bytes and nested at most `MAX_DEPTH` deep, without a key twice.
        place: file that it comes from, for errors.
        remedy: end of the error messages.

    Returns:
        The object.

    Raises:
        ValueError: it is anything else.
    """
    if len(text) > MAX_SIZE:
        raise ValueError(f"{place} must have at most {MAX_SIZE} bytes, got more: {remedy}")
    try:
        content = json.loads(text, object_pairs_hook=_without_repetition)
        if _depth(content) > MAX_DEPTH:
            raise RecursionError(f"it is nested more than {MAX_DEPTH} deep")
    except (ValueError, RecursionError) as error:
        line = str(error).split("\n")[0]
        raise ValueError(f"{place} cannot be read as a JSON file: {line}: {remedy}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{place} must contain a JSON object, got type {type(content).__name__}: {remedy}")
    return content


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {repeated} is given twice")
    return content


def _depth(content: Any) -> int:
    """Return how many containers the deepest value is in."""
    depth, level = 0, [content]
    while level := [value for value in level if isinstance(value, dict | list)]:
        depth += 1
        if depth > MAX_DEPTH:
            break
        level = [item for value in level for item in (value.values() if isinstance(value, dict) else value)]
    return depth
