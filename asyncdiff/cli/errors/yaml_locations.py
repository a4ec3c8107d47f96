"""Find the file and line of a key in the YAML files of a command line."""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import yaml


def yaml_files(argv: Sequence[str]) -> list[Path]:
    """Return the YAML files named on a command line."""
    paths = [Path(argument.rpartition("=")[2]) for argument in argv]
    return [path for path in paths if path.suffix in (".yaml", ".yml", ".json") and path.is_file()]


def mentions_class(class_path: str, argv: Sequence[str]) -> bool:
    """Return whether the command line or one of its files mentions a class, with or without its module."""
    values = [*argv, *(value for file in yaml_files(argv) for _, value, _ in entries(file))]
    return any(value and class_path.endswith(re.split(r"[.=]", value)[-1]) for value in values)


def locate(key: str, value: str, files: Sequence[Path]) -> str:
    """Find a key in the last file that contains it.

    Args:
        key: the dotted key.
        value: required value of the key or of its class_path; empty accepts any value.
        files: files in layering order; later ones override earlier ones.

    Returns:
        FILE:LINE, or an empty string if no file contains the key.
    """
    keys = [key, f"{key}.class_path"] if value else [key]
    for file in reversed(files):
        for entry, entry_value, line in entries(file):
            if entry in keys and value in ("", entry_value):
                return f"{file}:{line}"
    return ""


def entries(file: Path) -> list[tuple[str, str, int]]:
    """List (dotted key without list indices, scalar value, line) for every key of a file; empty if it is not YAML."""
    with suppress(yaml.YAMLError):
        return list(_walk(yaml.compose(file.read_bytes(), yaml.SafeLoader), ""))
    return []


def _walk(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, str, int]]:
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _walk(item, prefix)
    elif isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            key = f"{prefix}.{name.value}".lstrip(".").rstrip("+")
            yield key, value.value if isinstance(value, yaml.ScalarNode) else "", name.start_mark.line + 1
            yield from _walk(value, key)
