"""Experiment files with one mistake each, drawn by a seed."""

import copy
import random
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
# Keys of dictionaries that hold whatever the user likes: another name there is no mistake.
FREE = ("vars", "storage_options")
# Numbers that may be negative: seeds, and those of which Lightning's -1 means all or none.
SIGNED = (
    "gradient_clip_val",
    "seed",
    "seed_everything",
    "max_steps",
    "max_epochs",
    "save_top_k",
    "bias",
    "devices",
    "shift",
    "location",
)
UNBOUNDED = ("gradient_clip_val",)  # which clips nothing if it is infinite
# Which may be a share of an epoch, too, and the first a dictionary of hours and minutes.
TIMES = ("val_check_interval", "limit_val_batches", "limit_train_batches", "limit_test_batches")
WRONG: dict[type, list[Any]] = {
    bool: ["perhaps", [1], {"a": 1}, 17],
    int: ["many", [1, 2], {"a": 1}, 1.5],
    float: ["many", [1, 2], {"a": 1}],
    str: [[1, 2], {"a": 1}],
    list: ["many", {"a": 1}],
}
Place = tuple[Any, ...]


class Mistake(NamedTuple):
    """One wrong file: what was done, in words, and the bytes of it."""

    kind: str
    what: str
    content: bytes


def misspelt(word: str, choose: random.Random) -> str:
    """A word with two letters swapped, one left out or one added; always another one."""
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


def walk(node: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every key and item below a node with what stands there, those of free dictionaries left out."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield (*place, key), value
        if key not in FREE:
            yield from walk(value, (*place, key))


def at(tree: Any, place: Place) -> Any:
    """What stands at a place."""
    for key in place:
        tree = tree[key]
    return tree


def changed(tree: Any, place: Place, value: Any) -> Any:
    """The tree with another value at a place."""
    tree = copy.deepcopy(tree)
    at(tree, place[:-1])[place[-1]] = value
    return tree


def renamed(tree: Any, place: Place, name: str) -> Any:
    """The tree with another name for the key at a place, in the same order."""
    tree = copy.deepcopy(tree)
    above = at(tree, place[:-1])
    items = [(name if key == place[-1] else key, value) for key, value in above.items()]
    above.clear()
    above.update(items)
    return tree


def dumped(tree: Any) -> bytes:
    """A tree as a file."""
    return yaml.safe_dump(tree, sort_keys=False).encode()


def trees() -> dict[str, Any]:
    """The experiments that can be run as they are, by name."""
    found = {file.stem: yaml.safe_load(file.read_text()) for file in sorted(EXPERIMENTS.glob("*.yaml"))}
    return {name: tree for name, tree in found.items() if {"data", "model", "trainer"} <= tree.keys()}


def unique(accept: Callable[[Place, Any], bool], names: str = "") -> list[tuple[str, Any, Place]]:
    """Every place of the experiments once, as long as its keys and what it belongs to are not those of another."""
    found: dict[Any, tuple[str, Any, Place]] = {}
    for name, tree in trees().items():
        if not name.startswith(names):
            continue
        for place, value in walk(tree):
            if accept(place, value):
                above = at(tree, place[:-2]) if len(place) > 1 and place[-2] == "init_args" else {}
                kind = above.get("class_path", "") if isinstance(above, dict) else ""
                keys = tuple(key for key in place if isinstance(key, str))
                found.setdefault((kind, place[-1]) if kind else keys, (name, tree, place))
    return list(found.values())


def told(name: str, place: Place) -> str:
    """A place in words."""
    return f"{name}: {'.'.join(map(str, place))}"


def misspelt_keys(choose: random.Random) -> Iterator[Mistake]:
    """Every key of the experiments misspelt once."""
    for name, tree, place in unique(lambda place, value: isinstance(place[-1], str)):
        new = misspelt(place[-1], choose)
        if new not in at(tree, place[:-1]):
            yield Mistake("misspelt key", f"{told(name, place)} -> {new}", dumped(renamed(tree, place, new)))


def misspelt_classes(choose: random.Random) -> Iterator[Mistake]:
    """Every class of the experiments misspelt once."""
    for name, tree, place in unique(lambda place, value: place[-1] == "class_path"):
        path = at(tree, place)
        new = misspelt(path, choose)
        yield Mistake("unknown class", f"{told(name, place)} -> {new}", dumped(changed(tree, place, new)))


def wrong_types(choose: random.Random) -> Iterator[Mistake]:
    """Values of another type."""
    for name, tree, place in unique(lambda place, value: type(value) in WRONG and place[-1] != "class_path"):
        value = at(tree, place)
        if isinstance(value, str) and "${" in value:
            continue
        choices = WRONG[type(value)]
        if place[-1] in TIMES:
            choices = [other for other in choices if not isinstance(other, dict | float)]
        new = choose.choice(choices)
        yield Mistake("wrong type", f"{told(name, place)} -> {new!r}", dumped(changed(tree, place, new)))


def out_of_range(choose: random.Random) -> Iterator[Mistake]:
    """Numbers that nothing can mean: not a number, infinite, or negative where that has no meaning."""
    for name, tree, place in unique(lambda place, value: type(value) in (int, float), "digits"):
        values = [float("nan"), float("-inf"), *([] if place[-1] in UNBOUNDED else [float("inf")])]
        values += [] if place[-1] in SIGNED else [-3] if isinstance(at(tree, place), int) else [-3.5]
        new = choose.choice(values)
        yield Mistake("out of range", f"{told(name, place)} -> {new}", dumped(changed(tree, place, new)))


def no_files(choose: random.Random) -> Iterator[Mistake]:
    """Files that are broken as YAML or as text, sections that are double, empty or of another kind, dead references."""
    for name, tree in trees().items():
        text = (EXPERIMENTS / f"{name}.yaml").read_bytes()
        middle = choose.randrange(len(text) // 4, len(text) // 2)
        references = [
            p for p, value in walk(tree) if type(value) in (int, float) and all(isinstance(k, str) for k in p)
        ]
        place = choose.choice(references)
        section = choose.choice(["data", "model"])  # without keys, the trainer's is one that has its defaults
        for what, content in (
            ("a bracket left open", text + b"\nmore: [1, {a: 2\n"),
            ("a tabulator", text + b"\nmore:\n\t- 1\n"),
            ("no text", text[:middle] + b"\xff\xfe\x80" + text[middle:]),
            ("a zero byte", text[:middle] + b"\0" + text[middle:]),
            ("nothing of it", b""),
            ("a list", b"- 1\n- 2\n"),
            ("a section without anything", dumped({**tree, section: {}})),
            ("a section of another kind", dumped({**tree, choose.choice([section, "trainer"]): [1, 2]})),
            ("a key without a value", text.replace(b"model:\n", b"model: 3\n  x: 1\n")),
            ("a reference to nothing", dumped(changed(tree, place, "${trainer.nowhere}"))),
            ("a reference to itself", dumped(changed(tree, place, "${" + ".".join(map(str, place)) + "}"))),
            ("a broken reference", dumped(changed(tree, place, "${trainer."))),
            ("an anchor of nowhere", text + b"\nmore: *nowhere\n"),
            ("a tag of Python's", text + b"\nmore: !!python/object/apply:os.system ['true']\n"),
        ):
            yield Mistake("no configuration", f"{name}: {what}", content)


SOURCES = (misspelt_keys, misspelt_classes, wrong_types, out_of_range, no_files)
