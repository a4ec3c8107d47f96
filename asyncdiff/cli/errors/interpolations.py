"""Bound what interpolations such as ${vars.size} expand to, before any is resolved.

A dozen strings that refer to each other twice would fill the memory, and a circle would never end.
"""

import re
from collections.abc import Mapping
from typing import Any

from jsonargparse import Namespace
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationResolutionError

from asyncdiff.yaml_files import MAX_SIZE, NODE_SIZE

MAX_STEPS = 20  # from an interpolation to the next, and so on, to a value
# Resolvers of OmegaConf that parse text, so that what they may refer to is not seen in it.
REFUSED = ("oc.create", "oc.decode")
INNERMOST = re.compile(r"\$\{([^${}]*)\}")
PLACEHOLDER = "\0"  # stands for an inner interpolation

_Path = tuple[str, ...]


def check_interpolations(config: Any) -> None:
    """Raise InterpolationResolutionError if interpolations lead in a circle, or to more than `MAX_SIZE` bytes.

    Args:
        config: nested dicts, namespaces and lists, as yet unresolved.
    """
    if "${" in str(config):
        _Sizes(config).of(())


class _Sizes:
    """Sizes of values with all interpolations resolved.

    Args:
        root: the configuration.
    """

    def __init__(self, root: Any):
        self.root = root
        self.known: dict[_Path, int] = {}
        self.opened: list[_Path] = []  # interpolations that are being followed

    def of(self, path: _Path) -> int:
        """Return the size of the value at a path; 0 if there is none, which OmegaConf reports."""
        if path not in self.known:
            self.known[path] = self._of(path)
        return self.known[path]

    def _of(self, path: _Path) -> int:
        size, rest = 0, [(path, self._value(path))]
        while rest:
            where, value = rest.pop()
            size += NODE_SIZE
            if isinstance(value, str):
                size += len(value) + (self._of_text(where, value) if "${" in value else 0)
            else:
                rest += [((*where, key), item) for key, item in _items(value)]
            if size > MAX_SIZE:
                _refuse(
                    where, f"the value of its interpolation must have at most {MAX_SIZE} bytes, got more: shorten it"
                )
        return size

    def _of_text(self, where: _Path, text: str) -> int:
        if where in self.opened:
            _refuse(where, f"the interpolation {_shorten(text)} must not lead back to itself: write a value")
        if len(self.opened) >= MAX_STEPS:
            _refuse(where, f"interpolations must lead to a value in {MAX_STEPS} steps, got more: write the value")
        self.opened.append(where)
        size = sum(self.of(target) for target in _targets(where, text))
        self.opened.pop()
        return size

    def _value(self, path: _Path) -> Any:
        value = self.root
        for key in path:
            value = next((item for name, item in _items(value) if name == key), None)
        return value


def _targets(where: _Path, text: str) -> list[_Path]:
    """Return the paths that a text with interpolations at a path refers to."""
    targets: list[_Path] = []
    rest = text
    while match := INNERMOST.search(rest):
        inner = match[1]
        name, colon, arguments = inner.partition(":")
        if not colon and PLACEHOLDER in inner:
            _refuse(where, f"{_shorten(text)} must not have an interpolation within a key: write the key")
        if colon and (name.strip() in REFUSED or not OmegaConf.has_resolver(name.strip())):
            _refuse(where, f"there is no ${{{name.strip()}:...}}: use ${{KEY}} or ${{oc.env:NAME}}")
        if name.strip() != "oc.env":
            targets += [_target(where, part.strip()) for part in (arguments.split(",") if colon else [inner])]
        rest = rest[: match.start()] + PLACEHOLDER + rest[match.end() :]
    return targets


def _target(where: _Path, key: str) -> _Path:
    """Return the path of a key such as vars.size, or of one relative to a path, such as ..size."""
    up = len(key) - len(key.lstrip("."))
    names = re.findall(r"[^.\[\]]+", key)
    return (*(where[: max(0, len(where) - up)] if up else ()), *names)


def _items(value: Any) -> list[tuple[str, Any]]:
    """Return the keys and items of a container, and nothing for other values."""
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, Mapping):
        return [(str(key), item) for key, item in value.items()]
    return [(str(index), item) for index, item in enumerate(value)] if isinstance(value, list | tuple) else []


def _shorten(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def _refuse(where: _Path, problem: str) -> None:
    error = InterpolationResolutionError(problem)
    error.full_key = ".".join(f"[{key}]" if key.isdigit() else key for key in where).replace(".[", "[")
    raise error
