"""Find keys that are null although their type does not allow it: jsonargparse treats null as an omitted value."""

import typing
from argparse import Action, _SubParsersAction
from collections.abc import Iterator, Sequence
from functools import cache
from types import UnionType
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from asyncdiff.cli.errors.suggestions import find_class


def null_keys(actions: Sequence[Action], values: Namespace, above: str = "") -> Iterator[str]:
    """Yield the dotted keys, also of objects below, that are null although their type does not allow it.

    Args:
        actions: actions of a parser.
        values: values that it has parsed.
        above: what precedes the keys.
    """
    for action in actions:
        if isinstance(action, _SubParsersAction):
            if command := values.get(action.dest):
                yield from null_keys(action.choices[command]._actions, values[command], above)
            continue
        try:
            value = values[action.dest]
        except (KeyError, TypeError):  # omitted, or in a section that is null
            continue
        if value is None and not is_nullable(action):
            yield above + action.dest
        yield from _null_keys_below(value, above + action.dest)


def is_nullable(action: Action) -> bool:
    """Return whether null is valid: by the type, or because it is the default."""
    kind = getattr(action, "_typehint", None)
    return kind in (None, Any) or (action.default is None and not action.required) or type(None) in alternatives(kind)


def alternatives(kind: Any) -> tuple[Any, ...]:
    """Return the members of a union; any other type alone."""
    is_union = typing.get_origin(kind) in (typing.Union, UnionType)
    return tuple(part for option in typing.get_args(kind) for part in alternatives(option)) if is_union else (kind,)


@cache
def constructor_actions(kind: type) -> tuple[Action, ...]:
    """Return the actions that parse the constructor arguments of a class."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, fail_untyped=False)
    return tuple(action for action in parser._actions if action.dest != "help")


def _null_keys_below(value: Any, key: str) -> Iterator[str]:
    """Yield the keys of objects in a value."""
    if isinstance(value, list):
        for item in value:
            yield from _null_keys_below(item, key)
    elif isinstance(value, Namespace) and isinstance(arguments := value.get("init_args"), Namespace):
        if (kind := find_class(str(value.get("class_path")))) is not None:
            yield from null_keys(constructor_actions(kind), arguments, f"{key}.init_args.")
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _null_keys_below(item, f"{key}.{name}")
