"""Where in the files of a command line something stands."""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import yaml


def files_of(words: Sequence[str]) -> list[Path]:
    """The YAML files that a command line names."""
    named = [Path(word.rpartition("=")[2]) for word in words]
    return [path for path in named if path.suffix in (".yaml", ".yml", ".json") and path.is_file()]


def names_class(class_path: str, words: Sequence[str]) -> bool:
    """Whether the user names a class anywhere, with or without its module."""
    values = [*words, *(value for file in files_of(words) for _, value, _ in entries(file))]
    return any(value and class_path.endswith(re.split(r"[.=]", value)[-1]) for value in values)


def locate(key: str, value: str, files: Sequence[Path]) -> str:
    """FILE:LINE of a key, or of a value there unless empty, in the last file that has it; empty if none has."""
    keys = [key, f"{key}.class_path"] if value else [key]
    for file in reversed(files):  # the last one counts
        for entry, found, line in entries(file):
            if entry in keys and value in ("", found):
                return f"{file}:{line}"
    return ""


def entries(file: Path) -> list[tuple[str, str, int]]:
    """Every key of a file, dotted and without the indices of lists, with its scalar value and its line."""
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
