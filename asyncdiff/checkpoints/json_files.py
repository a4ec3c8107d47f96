"""Read JSON files of other programs or earlier runs; what is wrong with them is reported in one line."""

import json
from pathlib import Path
from typing import Any


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
        content = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        line = str(error).split("\n")[0]
        raise ValueError(f"{file} cannot be read as a JSON file: {line}: {remedy}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must contain a JSON object, got type {type(content).__name__}: {remedy}")
    return content
