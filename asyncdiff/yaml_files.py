"""Read YAML files of users: safely, bounded in size, depth and aliases; what is wrong is one clause with the line.

Numbers are read as on command lines, so that 1e-3 is a number, and dates stay strings. Imports no torch.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import yaml

from asyncdiff.regular_files import open_regular

MAX_SIZE = 2**21  # bytes of a file, and of its content with all aliases written out; real ones have kilobytes
MAX_DEPTH = 100  # sections in sections; real ones have about 15
MAX_NUMBER = 400  # characters of a number; the longest that float prints has 326
BASE = "tag:yaml.org,2002:"
NODE_SIZE = 8  # bytes counted for a value besides its characters
TAGS = {"!", *(f"{BASE}{name}" for name in ("str", "int", "float", "bool", "null"))}  # of single values only
FLOAT = re.compile(
    r"""[-+]?\d[\d_]*\.[\d_]*([eE][-+]?\d+)?  # 1. and 1.5e3
    |[-+]?\d[\d_]*[eE][-+]?\d+                # 1e3
    |\.[\d_]+([eE][-+]\d+)?                   # .5
    |[-+]?\d[\d_]*(:[0-5]?\d)+\.[\d_]*        # 1:30.5, to the base 60
    |[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)""",
    re.VERBOSE | re.ASCII,
)


class _StandardLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Loader with the rules of yaml.safe_dump, for files that it wrote."""


class _Loader(_StandardLoader):
    """Loader with the rules of command lines."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, rule) for tag, rule in rules if tag not in (f"{BASE}float", f"{BASE}timestamp")]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(f"{BASE}float", re.compile(f"(?:{FLOAT.pattern})$", FLOAT.flags), list("-+0123456789."))


def read_yaml(file: Path, *, name: str = "", dumped: bool = False) -> Any:
    """Read a YAML file.

    Args:
        file: path of the file.
        name: argument that names it, for errors about the file itself.
        dumped: whether yaml.safe_dump wrote it, which leaves texts such as 1e-3 without quotes.

    Returns:
        Its content: dicts, lists, strings, numbers, booleans and None; None if it is empty.

    Raises:
        ValueError: it is not a regular file, too large, or invalid; with the line.
        OSError: it does not exist or cannot be read.
    """
    with open_regular(file, name or "a YAML file") as stream:
        content = stream.read(MAX_SIZE + 1)
    return parse_yaml(content, str(file), dumped=dumped)


def parse_yaml(text: str | bytes, place: str = "", *, dumped: bool = False) -> Any:
    """Parse YAML.

    Args:
        text: one document.
        place: file or option that it comes from, which begins errors; a file is followed by the line.
        dumped: as for `read_yaml`.

    Returns:
        Content as returned by `read_yaml`.

    Raises:
        ValueError: it is invalid; if it is not YAML at all, the error's cause is a yaml.YAMLError.
    """
    return _parse(text, place, _StandardLoader if dumped else _Loader)[2]


def compose_yaml(text: str | bytes, place: str = "") -> tuple[_StandardLoader, yaml.Node | None]:
    """Parse YAML into nodes, which know their lines, and return them with the loader that constructs their values."""
    return _parse(text, place, _Loader)[:2]


def _parse(text: str | bytes, place: str, kind: type) -> tuple[_StandardLoader, yaml.Node | None, Any]:
    check = _Check(place)
    text = check.decode(text)
    loader: _StandardLoader = kind(text)
    try:
        check.events(yaml.parse(text, kind))
        if (node := loader.get_single_node()) is None:
            return loader, None, None
        check.values(loader, node)
        return loader, node, loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        check.refuse(f"not valid YAML: {check.problem(error, text)}", error.problem_mark, error)


class _Check:
    """Checks of one document, before it is constructed, and errors with its lines.

    Args:
        place: file or option that it comes from.
    """

    def __init__(self, place: str):
        self.place = place

    def refuse(self, problem: str, mark: Any = None, cause: Exception | None = None) -> NoReturn:
        """Raise ValueError with place, line and problem; options and texts without a place have no lines."""
        line = f":{mark.line + 1}" if mark and not self.place.startswith("-") else ""
        raise ValueError(f"{self.place}{line}: {problem}" if self.place else problem) from cause

    def decode(self, text: str | bytes) -> str:
        """Return text whose size and characters are permitted."""
        if len(text) > MAX_SIZE:
            self.refuse(f"YAML must have at most {MAX_SIZE} bytes, got more: check that this is the right file")
        if isinstance(text, bytes):
            try:
                text = text.decode()
            except UnicodeDecodeError as error:
                self.refuse(f"not valid YAML: {error.reason} at byte {error.start}; save it as UTF-8", cause=error)
        text = text.removeprefix("\ufeff")
        if wrong := yaml.reader.Reader.NON_PRINTABLE.search(text):
            line = text.count("\n", 0, wrong.start())
            problem = f"not valid YAML: special characters are not allowed, got {wrong[0]!a}; save it as UTF-8"
            self.refuse(problem, yaml.Mark("", 0, line, 0, None, None), yaml.YAMLError(problem))
        return text

    def problem(self, error: yaml.MarkedYAMLError, text: str) -> str:
        """Return what the parser found, or that a line is indented by tabs."""
        lines = text.splitlines()
        # What is missing is noticed at the end, which may be a line after the last one.
        line = next(iter(lines[error.problem_mark.line :]), "") if error.problem_mark else ""
        if "\t" in line[: len(line) - len(line.lstrip())]:
            return "lines must be indented by spaces, got a tab: replace it"
        return str(error.problem)

    def events(self, events: Iterator[yaml.Event]) -> None:
        """Refuse tags, several documents, and nesting or aliases beyond the bounds, without composing anything."""
        sizes: dict[str, int | None] = {}  # by anchor; None while its collection is open
        opened: list[tuple[str | None, int]] = []  # anchors of the open collections, and the size in front of them
        size = documents = 0
        for event in events:
            mark = event.start_mark
            documents += isinstance(event, yaml.DocumentStartEvent)
            if documents > 1:
                problem = "a file must have one document, got a second one: delete one"
                self.refuse(problem, mark, yaml.YAMLError(problem))
            if isinstance(event, yaml.CollectionEndEvent):
                anchor, before = opened.pop()
                if anchor:
                    sizes[anchor] = size - before
            elif isinstance(event, yaml.AliasEvent):
                part = sizes.get(event.anchor, 0)  # the composer reports unknown anchors
                if part is None:
                    self.refuse(f"*{event.anchor} must not contain itself: write it out", mark)
                size += part
            elif isinstance(event, yaml.NodeEvent):
                self._tag(event)
                if event.anchor in sizes:
                    self.refuse(f"&{event.anchor} is defined twice: choose another name", mark)
                before, size = size, size + NODE_SIZE + len(getattr(event, "value", ""))
                if event.anchor:
                    sizes[event.anchor] = size - before if isinstance(event, yaml.ScalarEvent) else None
                if isinstance(event, yaml.CollectionStartEvent):
                    opened.append((event.anchor, before))
            if len(opened) > MAX_DEPTH:
                self.refuse(f"YAML must be nested at most {MAX_DEPTH} deep, got more: flatten it", mark)
            if size > MAX_SIZE:
                problem = f"YAML with its aliases written out must have at most {MAX_SIZE} bytes, got more: shorten it"
                self.refuse(problem, mark)

    def _tag(self, event: yaml.NodeEvent) -> None:
        tag: str | None = getattr(event, "tag", None)
        if tag and (tag not in TAGS or isinstance(event, yaml.CollectionStartEvent)):
            written = f"!!{tag.removeprefix(BASE)}" if tag.startswith(BASE) else tag
            problem = f"tags are not allowed, got {written}: delete it"
            self.refuse(problem, event.start_mark, yaml.YAMLError(problem))

    def values(self, loader: _StandardLoader, root: yaml.Node) -> None:
        """Refuse keys that are given twice, keys that are no scalars, and numbers that cannot be read."""
        seen: set[int] = set()
        rest = [root]
        while rest:
            if id(node := rest.pop()) in seen:
                continue
            seen.add(id(node))
            if isinstance(node, yaml.SequenceNode):
                rest += node.value
            elif isinstance(node, yaml.MappingNode):
                self._keys(loader, node)
                rest += [value for _, value in node.value]
            else:
                self._scalar(loader, node)

    def _keys(self, loader: _StandardLoader, node: yaml.MappingNode) -> None:
        lines: dict[Any, yaml.Mark] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                problem = "keys must be text or numbers, got a list or section: check the brackets"
                self.refuse(problem, key.start_mark, yaml.YAMLError(problem))
            is_merge = key.tag == f"{BASE}merge"
            value = "<<" if is_merge else self._scalar(loader, key)
            if (value, is_merge) in lines:
                first = (
                    ""
                    if self.place.startswith("-") or not self.place
                    else f", first in line {lines[value, is_merge].line + 1}"
                )
                self.refuse(f"the key {key.value} is given twice{first}: delete one", key.start_mark)
            lines[value, is_merge] = key.start_mark

    def _scalar(self, loader: _StandardLoader, node: yaml.ScalarNode) -> Any:
        kind = node.tag.removeprefix(BASE)
        if escaped := yaml.reader.Reader.NON_PRINTABLE.search(node.value):
            self.refuse(f"special characters are not allowed, got {escaped[0]!a}: delete it", node.start_mark)
        try:
            if kind in ("int", "float") and len(node.value) > MAX_NUMBER:
                raise ValueError
            return loader.construct_object(node)
        except (ValueError, KeyError, ArithmeticError):
            shown = node.value if len(node.value) <= MAX_NUMBER else f"{node.value[:10]}..."
            problem = f"{shown} cannot be read as {kind}: put it into quotes to make it text"
            self.refuse(problem, node.start_mark, yaml.YAMLError(problem))
