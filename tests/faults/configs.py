"""Experiment files with one random mistake each."""

import copy
import random
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
# Keys of dictionaries with arbitrary keys, in which a with_renamed_key key is valid.
FREE = ("vars", "storage_options")
# Numbers that may be negative, such as those of which -1 means all or none in Lightning.
SIGNED = (
    "max_steps",
    "max_epochs",
    "save_top_k",
    "bias",
    "devices",
    "shift",
    "location",
)
UNBOUNDED = ("gradient_clip_val",)  # infinity disables clipping
# These may also be fractions of an epoch, and the first a dictionary of hours and minutes.
TIMES = ("val_check_interval", "limit_val_batches", "limit_train_batches", "limit_test_batches")
WRONG: dict[type, list[Any]] = {
    bool: ["perhaps", [1], {"a": 1}, 17],
    int: ["many", [1, 2], {"a": 1}, 1.5],
    float: ["many", [1, 2], {"a": 1}],
    str: [[1, 2], {"a": 1}],
    list: ["many", {"a": 1}],
}
KeyPath = tuple[Any, ...]


class Mistake(NamedTuple):
    """Invalid file.

    Attributes:
        kind: kind of mistake.
        what: description of the change.
        content: bytes of the file.
    """

    kind: str
    what: str
    content: bytes


def misspell(word: str, choose: random.Random) -> str:
    """Return the word with two letters swapped, one omitted or one inserted; never the word itself."""
    while True:
        at = choose.randrange(len(word))
        how = choose.randrange(3)
        if how == 0 and at + 1 < len(word):
            new = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        elif how == 1 and len(word) > 2:
            new = word[:at] + word[at + 1 :]
        else:
            new = word[:at] + choose.choice(string.ascii_lowercase) + word[at:]
        if new != word:
            return new


def walk(node: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Yield the path and value of every key and item below a node, except in dictionaries with arbitrary keys."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield (*path, key), value
        if key not in FREE:
            yield from walk(value, (*path, key))


def at(tree: Any, path: KeyPath) -> Any:
    """Return the value at a path."""
    for key in path:
        tree = tree[key]
    return tree


def with_value(tree: Any, path: KeyPath, value: Any) -> Any:
    """Return a copy of the tree with another value at a path."""
    tree = copy.deepcopy(tree)
    at(tree, path[:-1])[path[-1]] = value
    return tree


def with_renamed_key(tree: Any, path: KeyPath, name: str) -> Any:
    """Return a copy of the tree with the key at a path renamed, in the same order."""
    tree = copy.deepcopy(tree)
    above = at(tree, path[:-1])
    items = [(name if key == path[-1] else key, value) for key, value in above.items()]
    above.clear()
    above.update(items)
    return tree


def to_yaml(tree: Any) -> bytes:
    """Return the tree as a YAML file."""
    return yaml.safe_dump(tree, sort_keys=False).encode()


def trees() -> dict[str, Any]:
    """Return the complete experiments by name."""
    found = {file.stem: yaml.safe_load(file.read_text()) for file in sorted(EXPERIMENTS.glob("*.yaml"))}
    return {name: tree for name, tree in found.items() if {"data", "model", "trainer"} <= tree.keys()}


def unique_paths(accept: Callable[[KeyPath, Any], bool], names: str = "") -> list[tuple[str, Any, KeyPath]]:
    """Return the paths that `accept` accepts in all experiments, without repeated combinations of class and key."""
    found: dict[Any, tuple[str, Any, KeyPath]] = {}
    for name, tree in trees().items():
        if not name.startswith(names):
            continue
        for path, value in walk(tree):
            if accept(path, value):
                above = at(tree, path[:-2]) if len(path) > 1 and path[-2] == "init_args" else {}
                kind = above.get("class_path", "") if isinstance(above, dict) else ""
                keys = tuple(key for key in path if isinstance(key, str))
                found.setdefault((kind, path[-1]) if kind else keys, (name, tree, path))
    return list(found.values())


def describe(name: str, path: KeyPath) -> str:
    """Return the experiment and dotted path of a value."""
    return f"{name}: {'.'.join(map(str, path))}"


def misspelled_keys(choose: random.Random) -> Iterator[Mistake]:
    """Misspell every key of the experiments once."""
    for name, tree, path in unique_paths(lambda path, value: isinstance(path[-1], str)):
        new = misspell(path[-1], choose)
        if new not in at(tree, path[:-1]):
            yield Mistake(
                "misspelled key", f"{describe(name, path)} -> {new}", to_yaml(with_renamed_key(tree, path, new))
            )


def misspelled_classes(choose: random.Random) -> Iterator[Mistake]:
    """Misspell every class of the experiments once."""
    for name, tree, path in unique_paths(lambda path, value: path[-1] == "class_path"):
        new = misspell(at(tree, path), choose)
        yield Mistake("unknown class", f"{describe(name, path)} -> {new}", to_yaml(with_value(tree, path, new)))


def wrong_types(choose: random.Random) -> Iterator[Mistake]:
    """Replace values by values of another type."""
    for name, tree, path in unique_paths(lambda path, value: type(value) in WRONG and path[-1] != "class_path"):
        value = at(tree, path)
        if isinstance(value, str) and "${" in value:
            continue
        choices = WRONG[type(value)]
        if path[-1] in TIMES:
            choices = [other for other in choices if not isinstance(other, dict | float)]
        new = choose.choice(choices)
        yield Mistake("wrong type", f"{describe(name, path)} -> {new!r}", to_yaml(with_value(tree, path, new)))


def out_of_range(choose: random.Random) -> Iterator[Mistake]:
    """Replace numbers by NaN, infinity, or negative numbers where these are invalid."""
    for name, tree, path in unique_paths(lambda path, value: type(value) in (int, float), "digits"):
        values = [float("nan"), float("-inf"), *([] if path[-1] in UNBOUNDED else [float("inf")])]
        values += [] if path[-1] in SIGNED else [-3] if isinstance(at(tree, path), int) else [-3.5]
        new = choose.choice(values)
        yield Mistake("out of range", f"{describe(name, path)} -> {new}", to_yaml(with_value(tree, path, new)))


def invalid_files(choose: random.Random) -> Iterator[Mistake]:
    """Yield invalid YAML or text, duplicate, empty or mistyped sections, and broken references."""
    for name, tree in trees().items():
        text = (EXPERIMENTS / f"{name}.yaml").read_bytes()
        middle = choose.randrange(len(text) // 4, len(text) // 2)
        references = [
            p for p, value in walk(tree) if type(value) in (int, float) and all(isinstance(k, str) for k in p)
        ]
        path = choose.choice(references)
        section = choose.choice(["data", "model"])  # an empty trainer section is valid
        for what, content in (
            ("an open bracket", text + b"\nmore: [1, {a: 2\n"),
            ("a tab", text + b"\nmore:\n\t- 1\n"),
            ("invalid UTF-8", text[:middle] + b"\xff\xfe\x80" + text[middle:]),
            ("a zero byte", text[:middle] + b"\0" + text[middle:]),
            ("an empty file", b""),
            ("a list", b"- 1\n- 2\n"),
            ("an empty section", to_yaml({**tree, section: {}})),
            ("a section that is a list", to_yaml({**tree, choose.choice([section, "trainer"]): [1, 2]})),
            ("a key without a value", text.replace(b"model:\n", b"model: 3\n  x: 1\n")),
            ("a reference to a missing key", to_yaml(with_value(tree, path, "${trainer.nowhere}"))),
            ("a reference to itself", to_yaml(with_value(tree, path, "${" + ".".join(map(str, path)) + "}"))),
            ("a broken reference", to_yaml(with_value(tree, path, "${trainer."))),
            ("an undefined anchor", text + b"\nmore: *nowhere\n"),
            ("a Python tag", text + b"\nmore: !!python/object/apply:os.system ['true']\n"),
        ):
            yield Mistake("invalid file", f"{name}: {what}", content)


SOURCES = (misspelled_keys, misspelled_classes, wrong_types, out_of_range, invalid_files)
